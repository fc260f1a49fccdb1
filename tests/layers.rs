//! The layers of the crate: arrows point down only, and `unsafe` stays in one place.
//!
//! ```text
//! api          lib store queue delivery message headers origin browse testing
//! engine
//! cursor  log  dispatch  compaction      none of these knows another
//! format
//! storage
//! ```
//!
//! The vocabulary (times, errors, locks, options, ids, reports) may be used by all, and uses nothing but itself. Test
//! modules may use what they want.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const API: &str = "api";

/// Every layer, from the top, with its modules. A module uses those of the layers below its own.
const LAYERS: [(&str, &[&str]); 5] = [
    (
        API,
        &["lib", "store", "queue", "delivery", "message", "headers", "origin", "browse", "testing"],
    ),
    ("engine", &["engine"]),
    ("log", &["cursor", "log", "dispatch", "compaction"]),
    ("format", &["format"]),
    ("storage", &["storage"]),
];

/// May be used by all modules.
const VOCABULARY: [&str; 10] =
    ["clock", "error", "events", "id", "lock", "options", "planted", "random", "report", "sync"];

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|(_, modules)| modules.contains(&module))
}

/// Why `from` must not use `to`; None if it may.
fn objection(from: &str, to: &str) -> Option<String> {
    if from == to || from == "lib" || VOCABULARY.contains(&to) {
        return None;
    }
    let below = "the vocabulary, which uses nothing but itself";
    let Some(from_layer) = layer(from) else {
        return Some(if VOCABULARY.contains(&from) {
            format!("`{from}` is of {below}")
        } else {
            format!("`{from}` has no layer: give it one in tests/layers.rs")
        });
    };
    match layer(to) {
        None => Some(format!("`{to}` is no module: name the one that the item lives in")),
        Some(0) if from_layer == 0 => None,
        Some(to_layer) if to_layer > from_layer => None,
        Some(to_layer) if to_layer == from_layer => {
            Some(format!("`{from}` and `{to}` are beside each other"))
        }
        Some(to_layer) => {
            let (below, above) = (LAYERS[from_layer].0, LAYERS[to_layer].0);
            Some(format!("layer `{below}` lies below layer `{above}`"))
        }
    }
}

fn source_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// All source files below `dir`.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The names of the modules that lead to a file, from the crate's root: none for lib.rs.
fn module_path(file: &Path) -> Vec<String> {
    let names = file.strip_prefix(source_root()).unwrap().with_extension("");
    let mut names: Vec<String> =
        names.iter().map(|name| name.to_str().unwrap().to_owned()).collect();
    if names.last().is_some_and(|name| name == "mod" || name == "lib") {
        names.pop();
    }
    names
}

/// The code of a file, by lines: comments, string literals and what is for tests alone are left out. Also the names of
/// the modules in files of their own that are for tests alone.
fn code(text: &str) -> (Vec<(usize, String)>, Vec<String>) {
    let mut kept = Vec::new();
    let mut test_modules = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept.push((number + 1, without_comment(line)));
            continue;
        }
        let item = lines.find(|(_, line)| !line.trim_start().starts_with("#["));
        let item = item.expect("an attribute belongs to an item").1;
        if let Some(name) = item.trim().strip_suffix(';') {
            let name = name.rsplit(' ').next().unwrap_or_default();
            test_modules.extend(item.contains("mod ").then(|| name.to_owned()));
        } else if item.ends_with('{') {
            // As rustfmt writes it, the item ends with a brace as far to the left as its first line.
            let indent = &item[..item.len() - item.trim_start().len()];
            let end = format!("{indent}}}");
            lines.find(|(_, line)| *line == end);
        }
    }
    (kept, test_modules)
}

/// A line without its comment and without what stands in quotes.
fn without_comment(line: &str) -> String {
    let mut kept = String::new();
    let mut in_string = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_string => drop(chars.next()),
            '"' => in_string = !in_string,
            '/' if !in_string && chars.peek() == Some(&'/') => break,
            c if !in_string => kept.push(c),
            _ => {}
        }
    }
    kept
}

fn tokens(line: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let end = if is_word(first) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        tokens.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    tokens
}

/// The modules below the crate's root that the code names, by `crate::` or by a chain of `super::` that leads there,
/// each with the line. `depth` is that of the file's own module.
fn named(code: &[(usize, String)], depth: usize) -> BTreeSet<(usize, String)> {
    let tokens: Vec<(usize, &str)> = code
        .iter()
        .flat_map(|(number, line)| tokens(line).into_iter().map(|token| (*number, token)))
        .collect();
    let word = |at: usize| tokens.get(at).map_or("", |(_, token)| *token);
    let mut named = BTreeSet::new();
    let mut at = 0;
    while at < tokens.len() {
        let mut supers = 0;
        while word(at + 2 * supers) == "super" && word(at + 2 * supers + 1) == "::" {
            supers += 1;
        }
        let behind = match word(at) {
            "crate" if word(at + 1) == "::" => at + 2,
            _ if supers > 0 && supers >= depth => at + 2 * supers,
            _ => {
                at += (2 * supers).max(1);
                continue;
            }
        };
        let line = tokens[at].0;
        if word(behind) == "{" {
            let group = tokens[behind + 1..].iter().map(|(_, token)| *token);
            named.extend(heads(group).into_iter().map(|name| (line, name.to_owned())));
        } else {
            named.insert((line, word(behind).to_owned()));
        }
        at = behind;
    }
    named
}

/// The first name of each path in a group, which begins behind its opening brace.
fn heads<'a>(group: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut heads = Vec::new();
    let (mut open, mut is_head) = (1, true);
    for token in group {
        match token {
            "{" => open += 1,
            "}" if open == 1 => break,
            "}" => open -= 1,
            "," => is_head = open == 1,
            name if is_head => {
                heads.push(name);
                is_head = false;
            }
            _ => {}
        }
    }
    heads
}

/// The code of every file that is not for tests alone, with its path.
fn all_code() -> Vec<(PathBuf, Vec<(usize, String)>)> {
    let mut all = Vec::new();
    let mut test_modules = Vec::new();
    for file in sources(&source_root()) {
        let (code, tests) = code(&fs::read_to_string(&file).unwrap());
        let parent = module_path(&file);
        test_modules.extend(tests.into_iter().map(|name| [parent.clone(), vec![name]].concat()));
        all.push((file, code));
    }
    all.retain(|(file, _)| {
        let path = module_path(file);
        !test_modules.iter().any(|test| path.starts_with(test))
    });
    assert!(all.len() > 20, "the sources are in {}", source_root().display());
    all
}

fn objections(path: &[String], code: &[(usize, String)]) -> Vec<(usize, String)> {
    let from = path.first().map_or("lib", String::as_str);
    named(code, path.len())
        .into_iter()
        .filter_map(|(line, to)| {
            let why = objection(from, &to)?;
            Some((line, format!("`{from}` must not use `crate::{to}`: {why}")))
        })
        .collect()
}

#[test]
fn no_layer_uses_one_above_it() {
    let mut found = Vec::new();
    for (file, code) in all_code() {
        for (line, what) in objections(&module_path(&file), &code) {
            found.push(format!("{}:{line}: {what}", file.display()));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn unsafe_code_lies_in_storage_alone() {
    let storage = source_root().join("storage");
    let mut found = Vec::new();
    let mut in_storage = 0;
    for (file, code) in all_code() {
        let lines = code.iter().filter(|(_, line)| tokens(line).contains(&"unsafe"));
        if file.starts_with(&storage) {
            in_storage += lines.count();
        } else {
            found.extend(lines.map(|(line, _)| format!("{}:{line}: unsafe", file.display())));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(in_storage > 0, "this test no longer sees what it looks for");
}

#[test]
fn every_module_has_one_layer() {
    let modules: BTreeSet<String> = all_code()
        .iter()
        .map(|(file, _)| module_path(file).first().cloned().unwrap_or("lib".to_owned()))
        .collect();
    let listed = LAYERS.iter().flat_map(|(_, modules)| modules.iter()).chain(&VOCABULARY);
    let listed: BTreeSet<String> = listed.map(|module| (*module).to_owned()).collect();
    assert_eq!(modules, listed);
}

/// What this test finds in a file, by its first words.
fn found_in(path: &str, text: &str) -> Vec<String> {
    let path: Vec<String> = path.split("::").map(str::to_owned).collect();
    objections(&path, &code(text).0).into_iter().map(|(_, what)| what).collect()
}

#[test]
fn an_upward_edge_is_noticed_however_it_is_written() {
    let upward = [
        "use crate::engine::Engine;",
        "use crate::{\n    error::Error,\n    engine::{Engine, Taken},\n};",
        "fn f(engine: &crate::engine::Engine) {}",
        "use super::super::engine::Engine;",
        "pub(crate) use crate::engine::Engine;",
    ];
    for text in upward {
        let found = found_in("log::tail", text);
        let what =
            "`log` must not use `crate::engine`: layer `log` lies below layer `engine`".to_owned();
        assert_eq!(found, [what], "{text}");
    }
    assert_eq!(found_in("log::tail", "use crate::dispatch::Entry;").len(), 1);
    assert_eq!(found_in("options", "use crate::dispatch::Backoff;").len(), 1);
    assert_eq!(found_in("engine", "use crate::Durability;").len(), 1);
}

#[test]
fn a_downward_edge_a_comment_and_a_test_are_left_alone() {
    let fine = [
        "use crate::format::frame::Frame;\nuse crate::error::Error;",
        "use super::super::log::Tail;\nuse super::commit::Commit;",
        "// crate::engine\n/// [`crate::engine::Engine`]\nconst A: &str = \"crate::engine\";",
        "#[cfg(test)]\nmod tests {\n    use crate::engine::Engine;\n}",
        "#[cfg(test)]\nuse crate::engine::Engine;",
    ];
    for text in fine {
        assert_eq!(found_in("log::tail", text), [""; 0], "{text}");
    }
    assert_eq!(found_in("store", "use crate::queue::Queue;"), [""; 0]);
}
