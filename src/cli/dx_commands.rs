//! `dx show` and `dx verify`: look into a `.dx` file without any database.

use crate::cli::exit::{Exit, Outcome};
use crate::cli::output::{Output, StdoutClosed, bytes, some};
use crate::dx::show::{ShowFormat, Verified, show, verify};
use anyhow::Context as _;
use serde_json::json;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

/// The subcommands of `dx`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum DxCommand {
    /// Print what a file says: header, units, operations with table and column names
    #[command(
        after_help = "Example:\n  dockmaster dx show docking/SHOP-01/outbox/00000042.dx\n  dockmaster dx show --json FILE | jq .header"
    )]
    Show(ShowArgs),
    /// Check files whole (lengths, checksums, hashes, counts, every record) and print one line for each
    #[command(
        after_help = "Example:\n  dockmaster dx verify docking/SHOP-01/outbox/*.dx\n\nEnds with 2 if any file is bad; the others are checked all the same."
    )]
    Verify(VerifyArgs),
}

/// Arguments of `dx show`.
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// A .dx file: of txnproc, an inbox, an outbox or quarantine
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print XML
    #[arg(long, conflicts_with = "json")]
    xml: bool,
}

/// Arguments of `dx verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// The .dx files
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

/// Runs one of them.
pub(crate) fn dx(command: &DxCommand, output: Output) -> Outcome {
    match command {
        DxCommand::Show(args) => show_file(args, output),
        DxCommand::Verify(args) => verify_files(args, output),
    }
}

fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("open {}", path.display()))
}

fn show_file(args: &ShowArgs, output: Output) -> Outcome {
    let name = || args.file.display().to_string();
    let format = if args.xml {
        ShowFormat::Xml
    } else if output.is_json() {
        ShowFormat::Json
    } else {
        ShowFormat::Text
    };
    // Checked whole first, so that nothing is printed of a file that is bad at its end.
    verify(open(&args.file)?).with_context(name)?;
    let mut sink = Sink { out: BufWriter::new(anstream::stdout().lock()), error: None };
    let shown = show(open(&args.file)?, format, &mut sink).map(drop);
    let failed = sink.error.take().or_else(|| sink.out.flush().err());
    match (failed, shown) {
        (Some(error), _) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
        (Some(error), _) => Err(error).context("write to stdout"),
        (None, shown) => shown.with_context(name).map(|()| Exit::Done),
    }
}

/// Text onto a byte stream; keeps the error that `fmt` has no room for.
struct Sink<W> {
    out: W,
    error: Option<std::io::Error>,
}

impl<W: std::io::Write> std::fmt::Write for Sink<W> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.out.write_all(text.as_bytes()).map_err(|error| {
            self.error = Some(error);
            std::fmt::Error
        })
    }
}

fn verify_files(args: &VerifyArgs, output: Output) -> Outcome {
    let mut exit = Exit::Done;
    let mut list = Vec::new();
    for path in &args.files {
        let name = path.display().to_string();
        let checked = open(path).and_then(|file| Ok(verify(file)?));
        match &checked {
            Ok(verified) => {
                list.push(json!({
                    "file": name, "ok": true, "bytes": verified.summary.bytes, "operations": verified.summary.operations,
                    "units": verified.summary.units, "content_hash": verified.summary.content_hash.to_string(),
                }));
                output.say(format!("{name}: ok, {}", summary(verified)))?;
            }
            Err(error) => {
                exit = Exit::Failed;
                list.push(json!({ "file": name, "ok": false, "error": format!("{error:#}") }));
                if !output.is_json() {
                    output.line(format!("{name}: BAD, {error:#}"))?;
                }
            }
        }
    }
    if output.is_json() {
        output.json(json!({ "files": list }))?;
    }
    Ok(exit)
}

fn summary(verified: &Verified) -> String {
    let Verified { header, summary } = verified;
    let whose = header.node.as_ref().map_or_else(|| "txnproc".to_owned(), |node| format!("{node} ({})", header.incarnation));
    let (operations, size) = (some(summary.operations, "operation", "operations"), bytes(summary.bytes));
    format!("{whose} file {}, txn {}..{}, {operations}, {size}", header.file_no, header.first, header.last)
}
