//! The arrows between rooms never turn round (docs/ARCHITECTURE.md, "Rooms").

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each crate may use of ours, in any section of its manifest.
const ALLOWED: [(&str, &[&str]); 9] = [
    ("gantry-api", &[]),
    ("gantry-runtime", &[]),
    ("gantry-images", &[]),
    ("gantry-netd", &["gantry-api"]),
    ("gantry-agent", &["gantry-api", "gantry-images", "gantry-netd"]),
    ("gantry-scheduler", &["gantry-api"]),
    ("gantry-cli", &["gantry-api", "gantry-images", "gantry-netd", "gantry-agent", "gantry-scheduler"]),
    ("gantry-tests", &["gantry-api", "gantry-images", "gantry-netd", "gantry-agent", "gantry-scheduler"]),
    ("xtask", &[]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Name of a crate and the crates of ours that its manifest names.
fn uses(manifest: &str) -> (String, BTreeSet<String>) {
    let lines = || manifest.lines().map(str::trim);
    let name = lines().find_map(|line| line.strip_prefix("name = ")).expect("a name").trim_matches('"');
    let ours = |line: &str| {
        let word = line.split([' ', '.', '=']).next().unwrap_or_default();
        (word.starts_with("gantry-") || word == "xtask").then(|| word.to_owned())
    };
    (name.to_owned(), lines().filter_map(ours).collect())
}

#[test]
fn no_crate_uses_one_above_it() {
    let workspace = read(&root().join("Cargo.toml"));
    let members = workspace.lines().find_map(|line| line.strip_prefix("members = [")).expect("members");
    let folders: Vec<&str> =
        members.trim_end_matches(']').split(',').map(|word| word.trim().trim_matches('"')).collect();
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.into();
    assert_eq!(folders.len(), allowed.len(), "a new crate needs a row in ALLOWED and in docs/ARCHITECTURE.md");
    for folder in folders {
        let (name, used) = uses(&read(&root().join(folder).join("Cargo.toml")));
        let may = allowed.get(name.as_str()).unwrap_or_else(|| panic!("`{name}` has no row in ALLOWED"));
        for other in used {
            assert!(may.contains(&other.as_str()), "{folder}/Cargo.toml: `{name}` must not use `{other}`");
        }
    }
}

/// Modules that decide: pictures and a time in, actions out.
const PURE: [&str; 2] = ["agent/src/plan", "scheduler/src/core"];
/// What a decision has no business with.
const IMPURE: [&str; 7] =
    ["std::fs", "std::net::Tcp", "tokio::", "tracing::", "Instant::now", "SystemTime::now", "redb"];

#[test]
fn decisions_do_no_io() {
    let mut files = 0;
    for place in PURE {
        for path in sources(&root().join(place)).into_iter().chain([root().join(format!("{place}.rs"))]) {
            let Ok(text) = fs::read_to_string(&path) else { continue };
            files += 1;
            for (number, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                for word in IMPURE {
                    assert!(
                        !code.contains(word),
                        "{}:{}: `{word}` in a module that decides",
                        path.display(),
                        number + 1
                    );
                }
            }
        }
    }
    assert!(files >= PURE.len(), "the modules that decide have moved: mend PURE");
}

/// Where `unsafe` is allowed: the system-call modules, and what runs before the C library, which cannot use them.
fn is_system_call_module(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let is_start = text.ends_with("runtime/src/entry.rs");
    is_start || path.components().any(|part| part.as_os_str() == "sys") || text.ends_with("/sys.rs")
}

#[test]
fn unsafe_lives_in_system_call_modules_only() {
    for (name, _) in ALLOWED {
        let folder = name.trim_start_matches("gantry-");
        for path in sources(&root().join(folder).join("src")) {
            let allows = read(&path).contains("allow(unsafe_code)");
            assert!(!allows || is_system_call_module(&path), "{}: move the call to a `sys` module", path.display());
        }
    }
}

/// Every Rust file below `folder`.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            out.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
    out
}
