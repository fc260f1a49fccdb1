//! The documentation keeps to what is there.

use std::collections::BTreeSet;
use std::path::Path;

/// Adds the names of all functions under `dir`.
fn functions(dir: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let named = text.lines().filter_map(|line| line.trim_start().strip_prefix("fn "));
            let is_in_name = |c: char| c.is_alphanumeric() || c == '_';
            names.extend(named.map(|name| name.chars().take_while(|c| is_in_name(*c)).collect()));
        }
    }
}

/// The names in each `(test: ...)` or `(tests: ...)`.
fn cited(page: &str) -> Vec<&str> {
    let page = page.split("(test").skip(1);
    let lists = page.filter_map(|rest| {
        let (list, _) =
            rest.strip_prefix('s').unwrap_or(rest).strip_prefix(':')?.split_once(')')?;
        Some(list)
    });
    lists.flat_map(|list| list.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn every_test_that_the_guarantees_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = BTreeSet::new();
    functions(&root.join("src"), &mut names);
    functions(&root.join("tests"), &mut names);
    let page = std::fs::read_to_string(root.join("docs/guarantees.md")).unwrap();
    let cited = cited(&page);
    assert!(
        cited.len() > 20,
        "{} tests are named; is the page still written that way?",
        cited.len()
    );
    let missing: Vec<_> = cited.into_iter().filter(|name| !names.contains(*name)).collect();
    assert!(missing.is_empty(), "docs/guarantees.md names tests that do not exist: {missing:#?}");
}

/// A promise is a list item, and each one ends with the name of its test.
#[test]
fn every_promise_of_the_guarantees_names_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/guarantees.md")).unwrap();
    let items = page.split("\n- ").skip(1);
    let items = items.map(|item| item.split("\n\n").next().unwrap_or_default());
    let without: Vec<_> = items.filter(|item| cited(item).is_empty()).collect();
    assert!(without.is_empty(), "promises without a test: {without:#?}");
}
