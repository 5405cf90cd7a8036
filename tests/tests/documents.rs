//! What the documents name is there.
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use egress_common::reason::Reason;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// The crates that tests are in.
const CRATES: [&str; 3] = ["egress-common", "egress-user", "tests"];

/// All sources below a directory.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("{}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// The names of all functions in these texts.
fn functions(texts: &[String]) -> BTreeSet<&str> {
    texts
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(|line| line.trim_start().split_once("fn "))
        .map(|(_, rest)| rest.split(['(', '<']).next().unwrap_or_default())
        .collect()
}

/// What stands between backticks and is a name with underscores.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let is_name = |word: &&str| {
        word.contains('_')
            && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    text.split('`').skip(1).step_by(2).filter(is_name)
}

#[test]
fn the_conformance_table_names_tests_that_exist() -> Result<()> {
    let root = Path::new(ROOT);
    let table = fs::read_to_string(root.join("docs/nat-conformance.md"))?;
    let mut files = Vec::new();
    for name in CRATES {
        for directory in ["src", "tests"] {
            sources(&root.join(name).join(directory), &mut files)?;
        }
    }
    let texts = files.iter().map(fs::read_to_string).collect::<Result<Vec<_>, _>>()?;
    let functions = functions(&texts);
    let reasons: BTreeSet<&str> = Reason::ALL.iter().map(|(_, name)| *name).collect();
    let named: BTreeSet<&str> = names(&table).collect();
    assert!(named.len() > 40, "{} names", named.len());
    let missing: Vec<_> =
        named.difference(&functions).filter(|name| !reasons.contains(*name)).collect();
    assert!(missing.is_empty(), "neither a test nor a reason: {missing:?}");
    let words = table.split([' ', '`', '(', ')', ',', ':', '\n']);
    let mentioned: BTreeSet<&str> = words.filter(|word| word.ends_with(".rs")).collect();
    let is_there = |word: &&str| files.iter().any(|file| file.ends_with(word));
    let missing: Vec<_> = mentioned.iter().filter(|word| !is_there(word)).collect();
    assert!(!mentioned.is_empty() && missing.is_empty(), "no such file: {missing:?}");
    Ok(())
}
