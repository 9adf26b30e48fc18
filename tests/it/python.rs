//! A node and a `.dx` reader in Python that share no code with ours (`fixtures/python/dock.py`): what the documents say is enough, and right.

use crate::crm;
use crate::harness::{Site, literals};
use serde_json::Value as Json;
use std::path::{Path, PathBuf};
use std::process::Command;

fn dock(arguments: &[&str]) -> Json {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/python/dock.py");
    let output = Command::new("python3").arg(script).args(arguments).output().expect("python3; scripts/test.sh installs it");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_node_in_python_is_let_in_sends_a_unit_and_reads_what_comes_back() {
    let mut site = Site::new(
        |path| crm::sql_on(path, "CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT); INSERT INTO item VALUES(1, 'a'), (2, 'b')"),
        "version = 1\n[object.item]\nvisible.all = 'everyone'\n",
    );
    site.dockmaster_ok(&["deploy", "--yes"]);
    for node in ["PY", "ANNA"] {
        site.dockmaster_ok(&["node", "add", node]);
    }
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    let folder = site.path("python");
    std::fs::create_dir(&folder).unwrap();
    let said = dock(&[&address, "PY", &site.token("PY"), folder.to_str().unwrap()]);
    assert_eq!(said["server"], "HQ", "{said}");
    assert_eq!(said["extract"], serde_json::json!([[1, "a"], [2, "b"]]), "{said}");
    assert_eq!((&said["merged"], &said["confirms"]), (&Json::Bool(true), &serde_json::json!([[1, "merged"]])), "{said}");
    let rows = literals(&site.path("hq.db"), "SELECT id, name FROM item ORDER BY id");
    assert!(rows.last().unwrap().contains("made by dock.py"), "{rows:?}");
    // Our own node gets what the other one made.
    site.remote_sync_ok(&["sync", "anna.db"]);
    assert_eq!(literals(&site.path("anna.db"), "SELECT id, name FROM item ORDER BY id"), rows);
    assert_eq!(site.dockmaster(&["status"]).status.code(), Some(0), "nobody has to do anything");
    site.stop();
}

#[test]
fn every_golden_file_is_read_in_python_too() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/golden");
    let files: Vec<PathBuf> = ["v3-download.dx", "v3-upload.dx", "v3-txnproc.dx"].iter().map(|name| folder.join(name)).collect();
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/dx-format.md")).unwrap();
    for file in files {
        let said = dock(&["read", file.to_str().unwrap()]);
        let hash = said["content_hash"].as_str().unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(page.contains(&format!("| `{name}` | `{hash}`")), "{name}: {hash}");
        // A flipped bit anywhere is found by it as well.
        let mut bytes = std::fs::read(&file).unwrap();
        let damaged = tempfile::NamedTempFile::new().unwrap();
        for at in (0..bytes.len()).step_by(bytes.len() / 7) {
            bytes[at] ^= 0x10;
            std::fs::write(damaged.path(), &bytes).unwrap();
            bytes[at] ^= 0x10;
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/python/dock.py");
            let output = Command::new("python3").arg(script).arg("read").arg(damaged.path()).output().unwrap();
            assert!(!output.status.success(), "{name}: a bit of byte {at}");
        }
    }
}
