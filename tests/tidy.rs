//! What no compiler checks: the layers, who may log, sizes, and what must not be in the tree.
//!
//! Each check is a function of a file's path and text, and is shown a bad sample first.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is not as it should be"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Modules by layer: each uses only modules of lower layers, and itself.
const LAYERS: [&[&str]; 8] = [
    &["mail", "secret", "clock"],
    &["smtp", "policy"],
    &["event"],
    &["spool", "upstream", "secrets", "telemetry"],
    &["server", "delivery", "admin"],
    &["config"],
    &["app"],
    &["main", "cli"],
];
/// What is used within a layer: messages carry timestamps, and `main` is a line that calls `cli`.
const WITHIN: [(&str, &str); 2] = [("mail", "clock"), ("main", "cli")];
/// Up to this layer everything is a function of its arguments.
const PURE: usize = 2;
/// What pure modules do without: asynchrony, files, sockets, processes, threads.
const IMPURE: [&str; 9] = [
    "tokio::",
    "async fn",
    ".await",
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::process",
    "std::thread",
    "fastrand::",
];
/// The module that reads the clocks and draws the random numbers.
const CLOCK: &str = "src/clock.rs";
const MAY_LOG: [&str; 2] = ["src/event/", "src/telemetry.rs"];
const FILE_LINES_MAX: usize = 1000;

#[test]
fn a_module_uses_only_lower_layers() {
    let bad = check_layers("src/server/listener.rs", "use crate::delivery::Attempt;\n");
    assert_eq!(bad, ["src/server/listener.rs: server (layer 4) uses delivery (layer 4)"]);
    assert_eq!(check_layers("src/spool/x.rs", "fn f() { crate::upstream::g() }\n").len(), 1);
    assert_eq!(check_layers("src/spool/x.rs", "use crate::{mail::A, config::B};\n").len(), 1);
    assert_eq!(check_layers("src/unheard_of.rs", "").len(), 1);
    assert!(
        check_layers("src/spool/x.rs", "use crate::mail::A;\nuse crate::spool::B;\n").is_empty()
    );

    check(&rust_sources(), check_layers);
}

#[test]
fn the_lower_layers_are_pure() {
    assert_eq!(check_pure("src/smtp/x.rs", "async fn f() { g().await }\n").len(), 2);
    assert_eq!(check_pure("src/policy/x.rs", "use std::fs;\n").len(), 1);
    assert!(check_pure("src/spool/x.rs", "use std::fs;\n").is_empty());
    assert!(check_pure("src/smtp/x.rs", "// tokio:: is not for us\n").is_empty());

    check(&rust_sources(), check_pure);
}

#[test]
fn only_events_are_logged() {
    let bad = check_logging("src/server/x.rs", "use tracing::info;\n");
    assert_eq!(bad, ["src/server/x.rs:1: logs; make it an event of src/event/"]);
    assert_eq!(check_logging("src/a.rs", "fn f() {\n    tracing::warn!(x);\n}\n").len(), 1);
    assert!(check_logging("src/event/storing.rs", "use tracing::info;\n").is_empty());
    assert!(check_logging("src/a.rs", "/// Starts tracing.\n").is_empty());

    check(&rust_sources(), check_logging);
}

#[test]
fn files_are_short() {
    let long = "//! x\n".repeat(FILE_LINES_MAX + 1);
    assert_eq!(check_length("src/x.rs", &long).len(), 1);
    let tests = format!("//! x\n#[cfg(test)]\nmod tests {{\n{long}}}\n");
    assert!(check_length("src/x.rs", &tests).is_empty());

    check(&rust_sources(), check_length);
}

#[test]
fn every_file_says_what_it_is_for() {
    assert_eq!(check_doc("src/x.rs", "use std::fs;\n").len(), 1);
    assert!(check_doc("src/x.rs", "//! A thing.\n").is_empty());

    check(&rust_sources(), check_doc);
}

#[test]
fn every_todo_has_an_owner() {
    let todo = concat!("// TO", "DO");
    assert_eq!(check_todo("src/x.rs", &format!("{todo}: later\n")).len(), 1);
    assert!(check_todo("src/x.rs", &format!("{todo}(ana): later\n")).is_empty());

    check(&tree(), check_todo);
}

#[test]
fn no_machine_is_named() {
    for path in ["work", "root", "home/ana"] {
        assert_eq!(check_paths("x.sh", &format!("cd /{path}/x\n")).len(), 1, "{path}");
    }
    assert_eq!(check_paths("x.sh", concat!("export X=/tm", "p/target\n")).len(), 1);
    assert!(check_paths("x.md", "https://example.test/work/x and ./work/x\n").is_empty());

    check(&tree(), check_paths);
}

#[test]
fn every_key_of_the_reference_configuration_is_explained() {
    assert_eq!(check_keys("x.toml", "a = 1\n"), ["x.toml:1: a has no comment"]);
    assert_eq!(check_keys("x.toml", "# About a.\na = 1\n\nb = 2\n").len(), 1);
    assert!(check_keys("x.toml", "# About both.\na = 1\nb = 2  # and b\n").is_empty());
    assert!(
        check_keys("x.toml", "[t]  # t\nk = [\n  1,\n]  # k\n# c = 1  # its default\n").is_empty()
    );

    let reference: Vec<_> =
        tree().into_iter().filter(|p| p == Path::new("config/postgate.toml")).collect();
    assert_eq!(reference.len(), 1, "config/postgate.toml is missing");
    check(&reference, check_keys);
}

#[test]
fn every_metric_is_documented_and_no_other() {
    let known = metric_names("count(\"postgate_a_total\"); gauge!(\"postgate_b\")");
    assert_eq!(known, BTreeSet::from(["postgate_a_total".into(), "postgate_b".into()]));

    let mut counted = BTreeSet::new();
    let counts = |p: &PathBuf| p.starts_with("src/event") || p.ends_with("src/app/gauges.rs");
    for file in rust_sources().into_iter().filter(counts) {
        counted.extend(metric_names(&fs::read_to_string(root().join(file)).unwrap()));
    }
    let page = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    assert_eq!(metric_names(&page), counted, "docs/metrics.md (left) and the code (right) differ");
}

#[test]
fn every_claim_about_the_spool_names_a_test_that_exists() {
    let tests = BTreeSet::from(["that_it_does_what_it_says".to_owned()]);
    let page = "# S\n\n## A\n\nIt does.\n\n> Proof. `that_it_does_what_it_says`.\n";
    assert!(check_proofs(page, &tests).is_empty());
    assert_eq!(check_proofs(&page.replace("Proof", "Truth"), &tests).len(), 1);
    assert_eq!(check_proofs(&page.replace("says", "sings"), &tests).len(), 1);

    let is_test = |line: &str| line.trim_start().starts_with("#[") && line.contains("test");
    let mut tests = BTreeSet::new();
    for file in rust_sources() {
        let text = fs::read_to_string(root().join(file)).unwrap();
        tests.extend(functions(&text, is_test));
        // The conformance suite names its checks in a macro.
        if text.contains("macro_rules! conformance") {
            tests.extend(functions(&text, |_| true));
        }
    }
    let page = fs::read_to_string(root().join("docs/spool.md")).unwrap();
    let found = check_proofs(&page, &tests);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// Parts of the page that advise or announce.
const WITHOUT_PROOF: [&str; 2] = ["By hand", "Not there yet"];

fn check_proofs(page: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    for part in page.split("\n## ").skip(1) {
        let title = part.lines().next().unwrap_or_default();
        let proofs: Vec<&str> = part.lines().filter_map(|line| line.strip_prefix("> ")).collect();
        if !WITHOUT_PROOF.contains(&title) && !proofs.iter().any(|l| l.starts_with("Proof")) {
            found.push(format!("docs/spool.md: {title}: no proof"));
        }
        let text = proofs.join(" ");
        let named = text.split('`').skip(1).step_by(2).filter(|n| n.matches('_').count() > 2);
        let missing = named.filter(|name| !tests.contains(*name));
        found.extend(missing.map(|name| format!("docs/spool.md: {title}: no test {name}")));
    }
    found
}

/// The functions that follow a line of which `after` holds, with other attributes between.
fn functions(text: &str, after: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut marked = false;
    for line in text.lines() {
        let rest = line.trim_start();
        let rest = rest.trim_start_matches("pub(super) ").trim_start_matches("async ");
        if let Some(name) = rest.strip_prefix("fn ").filter(|_| marked || after(line)) {
            found.push(name.split(['(', '<']).next().unwrap_or_default().to_owned());
        }
        marked = after(line) || (marked && rest.starts_with("#["));
    }
    found
}

/// Applies a check to files, and fails with everything it found.
#[track_caller]
fn check(files: &[PathBuf], check: impl Fn(&str, &str) -> Vec<String>) {
    assert!(!files.is_empty());
    let mut found = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(root().join(file)) else { continue };
        found.extend(check(&file.to_string_lossy(), &text));
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

fn check_layers(path: &str, text: &str) -> Vec<String> {
    let module = module(path);
    if module == "lib" || !path.starts_with("src/") {
        return Vec::new();
    }
    let Some(own) = layer(module) else {
        return vec![format!("{path}: {module} has no layer; give it one in tests/tidy.rs")];
    };
    let fits = |used: &String| {
        used == module
            || WITHIN.contains(&(module, used.as_str()))
            || layer(used).is_some_and(|l| l < own)
    };
    let tell = |used: &String| {
        let theirs = layer(used).map_or_else(|| "none".to_owned(), |l| l.to_string());
        format!("{path}: {module} (layer {own}) uses {used} (layer {theirs})")
    };
    used_modules(&code(text)).iter().filter(|used| !fits(used)).map(tell).collect()
}

/// The modules named after `crate::`, also within braces.
fn used_modules(code: &str) -> BTreeSet<String> {
    let word = |text: &str| -> String {
        text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut used = BTreeSet::new();
    for after in ["crate::", "postgate::"].iter().flat_map(|p| code.split(p).skip(1)) {
        let Some(list) = after.strip_prefix('{') else {
            used.insert(word(after));
            continue;
        };
        let mut depth = 0;
        let mut item = String::new();
        for c in list.chars() {
            match c {
                '}' if depth == 0 => break,
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    used.insert(word(item.trim()));
                    item.clear();
                    continue;
                }
                _ => {}
            }
            item.push(c);
        }
        used.insert(word(item.trim()));
    }
    used.retain(|name| name.starts_with(|c: char| c.is_ascii_lowercase()));
    used
}

fn check_pure(path: &str, text: &str) -> Vec<String> {
    if layer(module(path)).is_none_or(|l| l > PURE) || path == CLOCK || !path.starts_with("src/") {
        return Vec::new();
    }
    let code = code(text);
    let used = IMPURE.iter().filter(|word| code.contains(**word));
    used.map(|word| format!("{path}: {word} in a pure layer")).collect()
}

fn check_logging(path: &str, text: &str) -> Vec<String> {
    let may = MAY_LOG.iter().any(|start| path.starts_with(start));
    if may || !path.starts_with("src/") {
        return Vec::new();
    }
    find(path, text, "logs; make it an event of src/event/", |line| {
        code(line).contains("tracing::")
    })
}

fn check_length(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
    if lines <= FILE_LINES_MAX {
        return Vec::new();
    }
    vec![format!("{path}: {lines} lines; at most {FILE_LINES_MAX} without tests")]
}

fn check_doc(path: &str, text: &str) -> Vec<String> {
    let documented = text.lines().any(|line| line.starts_with("//! "));
    if documented { Vec::new() } else { vec![format!("{path}: no //! documentation")] }
}

fn check_todo(path: &str, text: &str) -> Vec<String> {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];
    let open = |line: &str, word: &str| {
        let after = |(at, _): (usize, &str)| &line[at + word.len()..];
        let alone = |(at, _): &(usize, &str)| !line[..*at].ends_with(char::is_alphanumeric);
        let mut found = line.match_indices(word).filter(alone).map(after);
        found.any(|rest| !rest.starts_with('(') && !rest.starts_with(char::is_alphanumeric))
    };
    find(path, text, "without an owner in parentheses", |line| words.iter().any(|w| open(line, w)))
}

fn check_paths(path: &str, text: &str) -> Vec<String> {
    let places =
        ["/work/", "/root/", "/home/", concat!("/tm", "p/target"), concat!("/tm", "p/wt-")];
    find(path, text, "a path of one machine", |line| {
        // Only where a path starts; the samples of this file are split.
        let starts = |before: &str| {
            before.chars().last().is_none_or(|c| !c.is_alphanumeric() && !"./}-_{".contains(c))
        };
        places.iter().any(|p| line.match_indices(p).any(|(at, _)| starts(&line[..at])))
            && path != "tests/tidy.rs"
    })
}

/// A key is explained by a comment on its own line, or above it with nothing empty between.
fn check_keys(path: &str, text: &str) -> Vec<String> {
    let mut explained = false;
    let mut depth = 0_usize;
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        let (code, comment) = line.split_once('#').map_or((line, None), |(c, d)| (c, Some(d)));
        let starts_key = depth == 0 && code.contains('=') && !code.trim_start().starts_with('[');
        depth += code.matches(['[', '{']).count();
        depth = depth.saturating_sub(code.matches([']', '}']).count());
        if line.is_empty() {
            explained = false;
        } else if comment.is_some_and(|c| !c.trim().is_empty()) {
            explained = true;
        } else if starts_key && !explained && depth == 0 {
            let key = code.split('=').next().unwrap_or_default().trim();
            found.push(format!("{path}:{}: {key} has no comment", number + 1));
        }
    }
    found
}

fn find(path: &str, text: &str, what: &str, bad: impl Fn(&str) -> bool) -> Vec<String> {
    let lines = text.lines().enumerate().filter(|(_, line)| bad(line));
    lines.map(|(number, _)| format!("{path}:{}: {what}", number + 1)).collect()
}

/// The text without comments, and without the tests at its end.
fn code(text: &str) -> String {
    let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"));
    let bare = lines.map(|line| match line.find("//") {
        // Not within a URL.
        Some(at) if !line[..at].ends_with(':') => &line[..at],
        _ => line,
    });
    bare.collect::<Vec<_>>().join("\n")
}

fn module(path: &str) -> &str {
    let inner = path.strip_prefix("src/").unwrap_or(path);
    inner.split('/').next().unwrap_or_default().trim_end_matches(".rs")
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

fn rust_sources() -> Vec<PathBuf> {
    let is_rust = |p: &PathBuf| p.extension().is_some_and(|e| e == "rs");
    tree().into_iter().filter(is_rust).collect()
}

/// Every file of the tree that git would keep, or, without git, that is not built.
fn tree() -> Vec<PathBuf> {
    let mut git = Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(root());
    let listed = git.output().ok().filter(|o| o.status.success() && !o.stdout.is_empty());
    let mut files: Vec<PathBuf> = match listed {
        Some(out) => String::from_utf8(out.stdout).unwrap().lines().map(Into::into).collect(),
        None => walk(root()),
    };
    files.retain(|file| root().join(file).is_file());
    files
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if ["target", "var", ".git", "node_modules"].contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            files.extend(walk(&path));
        } else {
            files.push(path.strip_prefix(root()).unwrap().to_owned());
        }
    }
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The names of metrics in a text, in quotes or backticks.
fn metric_names(text: &str) -> BTreeSet<String> {
    let quoted = text.split(['"', '`']).filter(|word| word.starts_with("postgate_"));
    let name = |c: char| c.is_ascii_lowercase() || c == '_';
    quoted.filter(|word| word.chars().all(name)).map(str::to_owned).collect()
}
