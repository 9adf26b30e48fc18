//! `verify`: do nodes hold what they should?

use crate::base::ids::NodeName;
use crate::cli::exit::{Exit, Outcome};
use crate::cli::output::{Output, count, some, table};
use crate::cli::project::Settings;
use crate::model::digest::{DifferenceKind, TableOutcome};
use crate::model::node::NodeState;
use crate::server::nodes;
use crate::server::verify::{answer, ask, last_answer, name_missing, second_round};
use crate::store::sqlite::ServerDatabase;
use anyhow::bail;
use serde_json::{Value as Json, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// How often an answer is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dockmaster verify ANNA                  ask, and wait 30 s for the answer
  dockmaster verify --all --wait 600      every active node, at night
  dockmaster verify ANNA --wait 0         only ask; the node answers with its next sync
  dockmaster verify ANNA --last           the last answer that came
  dockmaster verify ANNA --repair         and send everything again if anything differs

The question travels in the node's stream, so both sides are compared at one place, under load too. The service must run, and the
node must sync. A row that a program at the node has changed shows as different. Ends with 1 if anything differs, with 3 if a
node has not answered in time.")]
pub(crate) struct VerifyArgs {
    /// The nodes
    #[arg(value_name = "NODE", required_unless_present = "all", conflicts_with = "all")]
    nodes: Vec<NodeName>,
    /// Every active node
    #[arg(long)]
    all: bool,
    /// Wait so long for the answers
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u64,
    /// Do not ask; show the last answer that came
    #[arg(long)]
    last: bool,
    /// Send a node that differs everything again, in its stream: no extract, no new init; what programs there changed is lost
    #[arg(long)]
    repair: bool,
}

/// What became of one question.
struct Answer {
    node: NodeName,
    /// When it came, if that is long ago.
    at: Option<i64>,
    outcomes: Option<Vec<TableOutcome>>,
    /// Its stream begins anew.
    repaired: bool,
}

impl Answer {
    fn differs(&self) -> bool {
        self.outcomes.iter().flatten().any(|outcome| !outcome.is_equal())
    }
}

/// Asks, waits and prints.
pub(crate) fn verify(named: Option<&Path>, args: &VerifyArgs, output: Output) -> Outcome {
    let settings = Settings::load(named)?;
    let database = ServerDatabase::open(&settings.database)?;
    let names: Vec<NodeName> = if args.all {
        nodes::list(&database)?.into_iter().filter(|node| node.state == NodeState::Active).map(|node| node.name).collect()
    } else {
        args.nodes.clone()
    };
    if names.is_empty() {
        bail!("no node is active");
    }
    let mut answers = Vec::new();
    if args.last {
        for node in names {
            nodes::show(&database, &node)?;
            let (at, outcomes) = last_answer(&settings.root, &node)?.unzip();
            answers.push(Answer { node, at, outcomes, repaired: false });
        }
    } else {
        let until = Instant::now() + Duration::from_secs(args.wait);
        let mut asked = Vec::new();
        for node in names {
            let id = ask(&database, &node, Vec::new())?;
            asked.push((node, id));
        }
        for (node, id) in asked {
            let mut outcomes = wait_for(&settings.root, &node, id, until)?;
            let choice = outcomes.as_deref().map(second_round).unwrap_or_default();
            if !choice.is_empty() {
                let second = ask(&database, &node, choice)?;
                if let Some(rows) = wait_for(&settings.root, &node, second, until)? {
                    outcomes = outcomes.map(|first| joined(first, rows));
                }
            }
            answers.push(Answer { node, at: None, outcomes, repaired: false });
        }
    }
    for answer in &mut answers {
        if let Some(outcomes) = &mut answer.outcomes {
            name_missing(&settings.root, &database, &answer.node, outcomes)?;
        }
    }
    if args.repair {
        for answer in answers.iter_mut().filter(|answer| answer.differs()) {
            nodes::restart(&database, &answer.node)?;
            answer.repaired = true;
        }
    }
    if output.is_json() {
        output.json(json!({ "nodes": answers.iter().map(answer_json).collect::<Vec<_>>() }))?;
    } else {
        output.line(text(&answers))?;
    }
    Ok(if answers.iter().any(Answer::differs) {
        Exit::NeedsPerson
    } else if answers.iter().any(|answer| answer.outcomes.is_none()) {
        Exit::TryAgain
    } else {
        Exit::Done
    })
}

fn wait_for(root: &Path, node: &NodeName, id: u64, until: Instant) -> anyhow::Result<Option<Vec<TableOutcome>>> {
    loop {
        let found = answer(root, node, id)?;
        if found.is_some() || Instant::now() >= until {
            return Ok(found);
        }
        std::thread::sleep(LOOK);
    }
}

/// Puts the rows of the second round in the place of the buckets of the first. What is equal by now was in step with the stream all along,
/// or was put right meanwhile; the first round's word for it stays.
fn joined(first: Vec<TableOutcome>, second: Vec<TableOutcome>) -> Vec<TableOutcome> {
    let rows = |outcome: TableOutcome| match second.iter().find(|rows| rows.table == outcome.table && !rows.found.is_empty()) {
        Some(rows) => rows.clone(),
        None => outcome,
    };
    first.into_iter().map(rows).collect()
}

fn kind_text(kind: DifferenceKind) -> &'static str {
    match kind {
        DifferenceKind::Missing => "missing",
        DifferenceKind::Extra => "extra",
        DifferenceKind::Different => "different",
    }
}

fn text(answers: &[Answer]) -> String {
    let mut rows = Vec::new();
    let mut details = Vec::new();
    for answer in answers {
        let Some(outcomes) = &answer.outcomes else {
            rows.push(vec![answer.node.to_string(), "-".to_owned(), "no answer yet: it comes with the node's next sync".to_owned()]);
            continue;
        };
        let unit = outcomes.first().map_or_else(|| "-".to_owned(), |outcome| count(outcome.unit.0));
        let wrong: Vec<&TableOutcome> = outcomes.iter().filter(|outcome| !outcome.is_equal()).collect();
        let result = match wrong.len() as u64 {
            0 => format!("equal, {}", some(outcomes.len() as u64, "table", "tables")),
            tables if answer.repaired => format!("{} differ; all rows are sent again with its next sync", some(tables, "table", "tables")),
            tables => format!("{} differ", some(tables, "table", "tables")),
        };
        rows.push(vec![answer.node.to_string(), unit, result]);
        for outcome in wrong {
            let mut line = |key: String, what: String| details.push(vec![answer.node.to_string(), outcome.table.clone(), key, what]);
            if !outcome.problem.is_empty() {
                line("-".to_owned(), outcome.problem.clone());
            }
            for found in &outcome.found {
                let key = if found.key.is_empty() { format!("? ({:016x})", found.key_hash) } else { found.key.clone() };
                line(key, kind_text(found.kind).to_owned());
            }
            if outcome.found.is_empty() && !outcome.buckets.is_empty() {
                line(
                    "-".to_owned(),
                    format!("{} of {} differ", some(outcome.buckets.len() as u64, "bucket", "buckets"), outcome.bucket_count),
                );
            }
            if outcome.more > 0 {
                line("-".to_owned(), format!("and {} more", count(outcome.more.cast_signed())));
            }
        }
    }
    let mut text = table(&["node", "as of txn", "result"], rows, &[1]);
    if !details.is_empty() {
        text = format!("{text}\n\n{}", table(&["node", "table", "key", "on the node"], details, &[]));
    }
    text
}

fn answer_json(answer: &Answer) -> Json {
    let tables = answer.outcomes.as_ref().map(|outcomes| {
        let table = |outcome: &TableOutcome| {
            let found: Vec<Json> = outcome
                .found
                .iter()
                .map(|found| json!({ "key": found.key, "key_hash": found.key_hash, "what": kind_text(found.kind) }))
                .collect();
            json!({
                "table": outcome.table, "txn": outcome.unit.0, "equal": outcome.is_equal(), "rows": found, "buckets": outcome.buckets,
                "bucket_count": outcome.bucket_count, "more": outcome.more, "problem": outcome.problem,
            })
        };
        outcomes.iter().map(table).collect::<Vec<_>>()
    });
    let equal = answer.outcomes.is_some() && !answer.differs();
    json!({ "node": answer.node.as_str(), "answered": answer.outcomes.is_some(), "at": answer.at, "equal": equal, "repaired": answer.repaired, "tables": tables })
}
