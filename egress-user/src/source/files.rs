//! Reads objects and settings from files: YAML or JSON, several documents a file, `kind: List`.
//!
//! Owns the way from paths to `Input`; what an object must look like is `model`'s and `config`'s.
//! A document that is refused becomes a condition and never loses the others; only a file that
//! cannot be read and an AgentConfig that cannot be used are errors.
//!
//! Surprising: documents are split at their `---` lines before YAML is parsed, so that a syntax
//! error spoils one document only. YAML allows that: such a line ends a document wherever it is.
//! And what was read before is not read again ([`Memory`]): of ten thousand objects one changes.
use std::{
    collections::HashMap,
    fs,
    io::{self, Read},
    mem,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use super::pieces;
use crate::{
    condition::{Condition, Reason},
    config::AgentConfig,
    model::{self, Object, Objects},
};

/// What the files say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Input {
    pub objects: Objects,
    /// The last AgentConfig among the documents.
    pub config: Option<AgentConfig>,
}

/// The objects of the last reading, by their text.
#[derive(Debug, Default)]
pub struct Memory {
    objects: HashMap<String, Object>,
    /// Of the reading before: what this one does not meet again is forgotten.
    before: HashMap<String, Object>,
}

impl Memory {
    fn recall(&mut self, text: &str) -> Option<Object> {
        if let Some(object) = self.objects.get(text) {
            return Some(object.clone());
        }
        let (text, object) = self.before.remove_entry(text)?;
        self.objects.insert(text, object.clone());
        Some(object)
    }
}

impl Input {
    /// Reads files in the order given; a directory stands for its `*.yaml`, `*.yml` and `*.json`
    /// in the order of their names, `-` for standard input.
    pub fn read(paths: &[PathBuf]) -> Result<Self> {
        Self::read_again(paths, &mut Memory::default())
    }

    /// As [`Input::read`], quicker where little has changed since the last reading.
    pub fn read_again(paths: &[PathBuf], memory: &mut Memory) -> Result<Self> {
        let mut input = Self::default();
        memory.before = mem::take(&mut memory.objects);
        for path in paths {
            for file in files_of(path)? {
                input.add_documents(&text_of(&file)?, &file.display().to_string(), memory)?;
            }
        }
        memory.before.clear();
        Ok(input)
    }

    /// Adds the documents of one text; `origin` names it in messages.
    pub fn add_text(&mut self, text: &str, origin: &str) -> Result<()> {
        self.add_documents(text, origin, &mut Memory::default())
    }

    fn add_documents(&mut self, text: &str, origin: &str, memory: &mut Memory) -> Result<()> {
        for (number, document) in (1..).zip(documents(text)) {
            let place = format!("{origin}#{number}");
            if let Some(object) = memory.recall(&document) {
                self.objects.insert(object);
                continue;
            }
            if let Some(items) = pieces::items(&document)
                && let Some(items) = items.into_iter().map(|item| Item::of(item, memory)).collect()
            {
                self.add_items(items, &place, memory)?;
                continue;
            }
            match parse_yaml(&document) {
                Ok(value) => self.add_one(&document, &value, &place, memory)?,
                Err(message) => self.refuse(format!("Document/{place}"), message),
            }
        }
        Ok(())
    }

    fn add_items(&mut self, items: Vec<Item<'_>>, place: &str, memory: &mut Memory) -> Result<()> {
        for (index, item) in items.into_iter().enumerate() {
            match item {
                Item::Known(object) => self.objects.insert(object),
                Item::New { text, value } => {
                    self.add_one(text, &value, &format!("{place}.items[{index}]"), memory)?;
                }
            }
        }
        Ok(())
    }

    /// Adds a document, and remembers it if it is an object without fault.
    fn add_one(
        &mut self,
        text: &str,
        document: &Value,
        place: &str,
        memory: &mut Memory,
    ) -> Result<()> {
        let Ok(object) = model::parse(document) else { return self.add(document, place) };
        memory.objects.insert(text.to_owned(), object.clone());
        self.objects.insert(object);
        Ok(())
    }

    fn add(&mut self, document: &Value, place: &str) -> Result<()> {
        match document["kind"].as_str() {
            // An empty document, such as one of comments.
            None if document.is_null() => Ok(()),
            Some("List") => self.add_list(document, place),
            Some("AgentConfig") => {
                let config = AgentConfig::parse(document)
                    .map_err(|message| anyhow!("AgentConfig in {place}: {message}"))?;
                if self.config.replace(config).is_some() {
                    self.objects.duplicate("AgentConfig/agent".into());
                }
                Ok(())
            }
            _ => {
                match model::parse(document) {
                    Ok(object) => self.objects.insert(object),
                    Err(condition) if condition.object.contains('?') => {
                        self.refuse(condition.object, format!("{place}: {}", condition.message));
                    }
                    Err(condition) => self.refuse(condition.object, condition.message),
                }
                Ok(())
            }
        }
    }

    fn add_list(&mut self, list: &Value, place: &str) -> Result<()> {
        for field in list.as_object().into_iter().flat_map(|fields| fields.keys()) {
            if !pieces::FIELDS.contains(&field.as_str()) {
                self.refuse(format!("List/{place}"), format!("unknown field `{field}`: remove it"));
            }
        }
        let Some(items) = list["items"].as_array() else {
            self.refuse(format!("List/{place}"), "`items` is no list".into());
            return Ok(());
        };
        items
            .iter()
            .enumerate()
            .try_for_each(|(index, item)| self.add(item, &format!("{place}.items[{index}]")))
    }

    fn refuse(&mut self, object: String, message: String) {
        self.objects.conditions.push(Condition::new(object, Reason::Invalid, message));
    }
}

/// An item of a list: read before, or only now.
enum Item<'a> {
    Known(Object),
    New { text: &'a str, value: Value },
}

impl<'a> Item<'a> {
    fn of(text: &'a str, memory: &mut Memory) -> Option<Self> {
        match memory.recall(text) {
            Some(object) => Some(Self::Known(object)),
            None => Some(Self::New { text, value: pieces::value(text)? }),
        }
    }
}

pub(super) fn files_of(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
        let file = entry.with_context(|| format!("read {}", path.display()))?.path();
        let extension = file.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("yaml" | "yml" | "json")) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

pub(super) fn text_of(path: &Path) -> Result<String> {
    if path.as_os_str() == "-" {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).context("read standard input")?;
        return Ok(text);
    }
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// The documents of a YAML stream, those of comments and directives only left out.
pub(super) fn documents(text: &str) -> impl Iterator<Item = String> {
    let mut documents = vec![String::new()];
    for line in text.trim_start_matches('\u{feff}').lines() {
        let content = match line.strip_prefix("---") {
            Some(rest) if rest.is_empty() || rest.starts_with([' ', '\t']) => {
                documents.push(String::new());
                rest
            }
            _ => line,
        };
        if let Some(document) = documents.last_mut() {
            document.push_str(content);
            document.push('\n');
        }
    }
    documents.into_iter().filter(|document| {
        document.lines().any(|line| {
            let line = line.trim();
            !(line.is_empty() || line.starts_with(['#', '%']) || line == "...")
        })
    })
}

pub(super) fn parse_yaml(document: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! {
        // A cluster's list of 10,000 namespaces is one document. The depth stays limited.
        budget: serde_saphyr::budget! {
            max_nodes: 100_000_000,
            max_events: 400_000_000,
            max_total_scalar_bytes: usize::MAX,
        },
        // A namespace may be called "on".
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(document, options)
        .map_err(|error| format!("no YAML or JSON: {error}"))
}

#[cfg(test)]
mod tests;
