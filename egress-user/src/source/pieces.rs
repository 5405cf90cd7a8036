//! Takes a list of objects apart without reading the objects, so that only those that changed since
//! the last reading have to be read.
//!
//! Pure: one document in, the texts of its items out, each of them YAML by itself. Must not judge
//! the items. Only a list as `oc get -o yaml` or `-o json` prints it is taken apart; any other
//! document is `None`, and is read whole. Where the lines deceive (a quoted text over several lines,
//! an alias of another item's anchor), an item by itself is no YAML, and the caller reads the whole.
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::files::parse_yaml;

/// The fields of a list.
pub const FIELDS: [&str; 4] = ["apiVersion", "items", "kind", "metadata"];

/// The texts of the items, if the document is a plain list.
pub fn items(document: &str) -> Option<Vec<&str>> {
    if document.trim_start().starts_with('{') { of_json(document) } else { of_yaml(document) }
}

/// The value of an item's text: in YAML it is a list of its own.
pub fn value(item: &str) -> Option<Value> {
    let value = parse_yaml(item).ok()?;
    match value {
        Value::Array(mut values) if item.trim_start().starts_with('-') => {
            values.pop().filter(|_| values.is_empty())
        }
        _ => Some(value),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct List<'a> {
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
    kind: String,
    #[serde(rename = "apiVersion")]
    _api_version: Option<Value>,
    #[serde(rename = "metadata")]
    _metadata: Option<Value>,
}

fn of_json(document: &str) -> Option<Vec<&str>> {
    let list: List<'_> = serde_json::from_str(document).ok()?;
    (list.kind == "List").then(|| list.items.into_iter().map(RawValue::get).collect())
}

fn of_yaml(document: &str) -> Option<Vec<&str>> {
    let (head, rest) = document.split_once("items:\n")?;
    if !(head.is_empty() || head.ends_with('\n')) {
        return None;
    }
    let indent = rest.find('-').filter(|at| rest[..*at].bytes().all(|byte| byte == b' '))?;
    let begins = |line: &str| {
        line.get(indent..).is_some_and(|line| line.starts_with("- "))
            && line.bytes().take(indent).all(|byte| byte == b' ')
    };
    let mut items = Vec::new();
    let (mut start, mut at) = (0, 0);
    for line in rest.split_inclusive('\n') {
        let depth = line.bytes().take_while(|byte| *byte == b' ').count();
        let is_blank = line.trim().is_empty();
        if begins(line) {
            if at > start {
                items.push(&rest[start..at]);
            }
            start = at;
        } else if depth <= indent && !is_blank {
            break;
        }
        at += line.len();
    }
    items.push(&rest[start..at]);
    let frame = parse_yaml(&format!("{head}items:\n{}", &rest[at..])).ok()?;
    let is_plain = frame["kind"] == "List"
        && frame["items"].is_null()
        && frame.as_object()?.keys().all(|key| FIELDS.contains(&key.as_str()));
    is_plain.then_some(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(document: &str) -> Option<Vec<Value>> {
        items(document)?.into_iter().map(value).collect()
    }

    /// What a reading of the whole gives.
    fn whole(document: &str) -> Vec<Value> {
        parse_yaml(document).unwrap()["items"].as_array().unwrap().clone()
    }

    #[test]
    fn lists_as_oc_prints_them_come_apart_into_their_items() {
        for document in [
            "apiVersion: v1\nitems:\n- kind: A\n  list:\n  - 1\n- kind: B\nkind: List\n",
            "kind: List\nitems:\n  - kind: A\n    list:\n      - 1\n  - {kind: B, list: [1]}\n",
            "kind: List\nitems:\n- kind: A\n  text: |\n    - no item\n\n    kind: no field\n- 7\n",
            "apiVersion: v1\nitems:\n- kind: A\n# a remark\nkind: List\n",
            "{\"kind\": \"List\", \"items\": [{\"kind\": \"A\"}, [1, 2]], \"metadata\": {}}",
        ] {
            assert_eq!(values(document), Some(whole(document)), "{document}");
        }
    }

    #[test]
    fn what_is_no_plain_list_is_left_whole() {
        for document in [
            "kind: NetNamespace\nmetadata: {name: a}\n",
            "kind: List\nitems: []\n",
            "kind: List\nitems:\n- a\nextra: 1\n",
            "kind: Other\nitems:\n- a\n",
            "kind: List\nmetadata:\n  items:\n  - a\n",
            "{\"kind\": \"List\", \"items\": [1], \"items\": [2]}",
            "{\"kind\": \"List\", \"items\": [1], \"extra\": 2}",
            "",
        ] {
            assert_eq!(items(document), None, "{document}");
        }
    }

    #[test]
    fn lines_that_deceive_give_an_item_that_is_none() {
        for document in [
            // The dash is text.
            "kind: List\nitems:\n- text: \"begins\n- and ends\"\n",
            // An anchor of another item.
            "kind: List\nitems:\n- &one {kind: A}\n- *one\n",
        ] {
            assert_eq!(values(document), None, "{document}");
        }
    }
}
