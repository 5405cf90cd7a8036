//! Edits a file of objects by hand's order: an egress IP for a VNID, on a node; or no longer.
//!
//! The file is replaced as a whole (a new file, renamed over the old one) under a lock, so that two
//! edits follow each other and a reader sees one or the other. Documents that an edit does not
//! touch stay as they are, comments included; what it touches is written anew: its comments are
//! lost, its keys sorted. New objects come last, into the file's list if it has one.
use std::{
    fs::{self, File},
    io::{self, Write as _},
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::files::{documents, parse_yaml};
use crate::{cidr::Cidr, model::DRAINING};

/// A file of objects, locked until this value is dropped.
#[derive(Debug)]
pub struct Edit {
    path: PathBuf,
    documents: Vec<Document>,
    changed: bool,
    /// Released by the system when it is closed.
    _lock: File,
}

/// One document: its text, and its value once it was read.
#[derive(Debug, Clone)]
struct Document {
    text: String,
    value: Value,
    touched: bool,
}

/// A node that hosts egress IPs, as the file is to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewNode {
    pub name: String,
    pub address: Ipv4Addr,
    pub subnet: Cidr,
}

impl Edit {
    /// Locks and reads the file; one that is not there is as an empty one.
    ///
    /// # Errors
    /// It cannot be locked or read, or a document in it cannot be parsed.
    pub fn open(path: &Path) -> Result<Self> {
        Self::locked(path, File::lock)
    }

    /// As [`Edit::open`], but waits for nobody.
    ///
    /// # Errors
    /// As [`Edit::open`], and while somebody else edits the file.
    pub fn open_now(path: &Path) -> Result<Self> {
        Self::locked(path, |lock| lock.try_lock().map_err(io::Error::from))
    }

    fn locked(path: &Path, take: impl FnOnce(&File) -> io::Result<()>) -> Result<Self> {
        // A link stays a link: what it points at is replaced.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let lock_path = beside(&path, "lock")?;
        let lock = File::options()
            .create(true)
            .append(true)
            .open(&lock_path)
            .and_then(|lock| take(&lock).map(|()| lock))
            .with_context(|| format!("lock {}", lock_path.display()))?;
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let mut all = Vec::new();
        for (number, text) in (1..).zip(documents(&text)) {
            let value = parse_yaml(&text).map_err(|message| {
                anyhow::anyhow!("{}#{number}: {message}: correct it first", path.display())
            })?;
            // The rest of the line with the dashes is the document's.
            let text = text.trim_start_matches('\n').to_owned();
            all.push(Document { text, value, touched: false });
        }
        Ok(Self { path, documents: all, changed: false, _lock: lock })
    }

    /// Its text, as [`Edit::commit`] would write it.
    ///
    /// # Errors
    /// A document cannot be written.
    pub fn text(&self) -> Result<String> {
        let as_json = self.path.extension().is_some_and(|extension| extension == "json");
        if as_json {
            let [document] = self.documents.as_slice() else {
                bail!("{}: JSON holds one document: make it a List", self.path.display());
            };
            return Ok(serde_json::to_string_pretty(&document.value)? + "\n");
        }
        let mut texts = Vec::new();
        for document in &self.documents {
            let Document { text, value, touched } = document;
            if !touched {
                texts.push(text.clone());
                continue;
            }
            let written = serde_saphyr::to_string(value).context("write an object")?;
            ensure!(
                parse_yaml(&written).as_ref() == Ok(value),
                "an object of {} does not survive being written: edit it by hand",
                self.path.display()
            );
            texts.push(written);
        }
        Ok(texts.join("---\n"))
    }

    /// Replaces the file, if anything was changed. Returns whether it was.
    ///
    /// # Errors
    /// The file cannot be written; then it is as it was.
    pub fn commit(&self) -> Result<bool> {
        if !self.changed {
            return Ok(false);
        }
        let text = self.text()?;
        let new = beside(&self.path, "new")?;
        let write = || -> Result<()> {
            let mut file = File::create(&new)?;
            if let Ok(old) = fs::metadata(&self.path) {
                file.set_permissions(old.permissions())?;
            }
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            Ok(fs::rename(&new, &self.path)?)
        };
        write().with_context(|| format!("replace {}", self.path.display()))?;
        Ok(true)
    }

    /// Lets the VNID have the egress IP on the node of that name.
    pub fn add(&mut self, vnid: u32, egress_ip: Ipv4Addr, node: &str) {
        self.touch_first(
            |object| is(object, "HostSubnet") && object["metadata"]["name"] == node,
            |object| list_ip(object, egress_ip),
        );
        let of_vnid = |object: &Value| is(object, "NetNamespace") && object["netid"] == vnid;
        if self.objects().any(|object| of_vnid(object) && lists(object, egress_ip)) {
            return;
        }
        if !self.touch_first(of_vnid, |object| list_ip(object, egress_ip)) {
            let name = name_of(vnid);
            self.push(json!({
                "apiVersion": "network.openshift.io/v1",
                "kind": "NetNamespace",
                "metadata": {"name": name},
                "netname": name,
                "netid": vnid,
                "egressIPs": [egress_ip.to_string()],
            }));
        }
    }

    /// A HostSubnet that the file does not have yet.
    pub fn add_node(&mut self, node: &NewNode) {
        let NewNode { name, address, subnet } = node;
        self.push(json!({
            "apiVersion": "network.openshift.io/v1",
            "kind": "HostSubnet",
            "metadata": {"name": name},
            "host": name,
            "hostIP": address.to_string(),
            "subnet": subnet.to_string(),
            "egressIPs": [],
        }));
    }

    /// Takes an egress IP from the VNID and from all nodes. A NetNamespace that only
    /// [`Edit::add`] can have made goes with its last one.
    pub fn remove(&mut self, vnid: u32, egress_ip: Ipv4Addr) {
        let name = name_of(vnid);
        let over = |object: &Value| {
            is(object, "NetNamespace")
                && object["metadata"]["name"] == *name
                && object["egressIPs"].as_array().is_some_and(Vec::is_empty)
        };
        self.touch_all(|object| {
            let asks = is(object, "NetNamespace") && object["netid"] == vnid;
            (asks || is(object, "HostSubnet")) && unlist_ip(object, egress_ip)
        });
        for document in self.documents.iter_mut().filter(|document| document.touched) {
            if let Some(items) = document.value.get_mut("items").and_then(Value::as_array_mut) {
                items.retain(|item| !over(item));
            }
        }
        self.documents.retain(|document| !(document.touched && over(&document.value)));
    }

    /// Lets the node of that name host the egress IP, and no other node.
    pub fn relocate(&mut self, egress_ip: Ipv4Addr, node: &str) {
        self.touch_all(|object| {
            if !is(object, "HostSubnet") {
                false
            } else if object["metadata"]["name"] == node {
                list_ip(object, egress_ip)
            } else {
                unlist_ip(object, egress_ip)
            }
        });
    }

    /// Lets the node of that name host just these egress IPs.
    pub fn host(&mut self, node: &str, egress_ips: &[Ipv4Addr]) {
        let texts: Vec<String> = egress_ips.iter().map(Ipv4Addr::to_string).collect();
        self.touch_all(|object| {
            let found = is(object, "HostSubnet") && object["metadata"]["name"] == node;
            if found {
                object["egressIPs"] = json!(texts);
            }
            found
        });
    }

    /// Marks the node of that name as being drained, or no longer.
    pub fn set_draining(&mut self, node: &str, draining: bool) {
        self.touch_all(|object| {
            let found = is(object, "HostSubnet") && object["metadata"]["name"] == node;
            found && annotate(object, DRAINING, draining.then_some("true"))
        });
    }

    fn objects(&self) -> impl Iterator<Item = &Value> {
        self.documents.iter().flat_map(|document| match document.value["items"].as_array() {
            Some(items) => items.as_slice(),
            None => std::slice::from_ref(&document.value),
        })
    }

    /// Changes the first object of which the condition holds. Returns whether there is one.
    fn touch_first(
        &mut self,
        condition: impl Fn(&Value) -> bool,
        change: impl FnOnce(&mut Value) -> bool,
    ) -> bool {
        for document in &mut self.documents {
            if let Some(object) = objects_mut(&mut document.value).iter_mut().find(|o| condition(o))
            {
                document.touched |= change(object);
                self.changed |= document.touched;
                return true;
            }
        }
        false
    }

    /// Changes every object; `change` returns whether it did anything.
    fn touch_all(&mut self, change: impl Fn(&mut Value) -> bool) {
        for document in &mut self.documents {
            for object in objects_mut(&mut document.value) {
                document.touched |= change(object);
            }
            self.changed |= document.touched;
        }
    }

    fn push(&mut self, object: Value) {
        self.changed = true;
        let list = self.documents.iter_mut().find(|document| document.value["kind"] == "List");
        match list {
            Some(document) => {
                document.touched = true;
                match document.value.get_mut("items").and_then(Value::as_array_mut) {
                    Some(items) => items.push(object),
                    None => document.value["items"] = json!([object]),
                }
            }
            None => {
                self.documents.push(Document { text: String::new(), value: object, touched: true });
            }
        }
    }
}

/// What a NetNamespace is called that is made for a VNID.
fn name_of(vnid: u32) -> String {
    format!("vnid-{vnid}")
}

/// The objects of a document: a list's, or the document itself.
fn objects_mut(document: &mut Value) -> &mut [Value] {
    if document["items"].is_array() {
        match document.get_mut("items").and_then(Value::as_array_mut) {
            Some(items) => items,
            None => &mut [],
        }
    } else {
        std::slice::from_mut(document)
    }
}

fn is(object: &Value, kind: &str) -> bool {
    object["kind"] == kind
}

fn lists(object: &Value, ip: Ipv4Addr) -> bool {
    let text = ip.to_string();
    object["egressIPs"].as_array().is_some_and(|ips| ips.iter().any(|listed| *listed == *text))
}

/// Returns whether it was not listed before.
fn list_ip(object: &mut Value, ip: Ipv4Addr) -> bool {
    if lists(object, ip) {
        return false;
    }
    match object.get_mut("egressIPs").and_then(Value::as_array_mut) {
        Some(ips) => ips.push(ip.to_string().into()),
        None => object["egressIPs"] = json!([ip.to_string()]),
    }
    true
}

/// Returns whether it was listed before.
fn unlist_ip(object: &mut Value, ip: Ipv4Addr) -> bool {
    let listed = lists(object, ip);
    let text = ip.to_string();
    if let Some(ips) = object.get_mut("egressIPs").and_then(Value::as_array_mut) {
        ips.retain(|listed| *listed != *text);
    }
    listed
}

/// Sets or removes an annotation; returns whether it was otherwise before.
fn annotate(object: &mut Value, name: &str, value: Option<&str>) -> bool {
    let metadata = &mut object["metadata"];
    if metadata["annotations"][name].as_str() == value {
        return false;
    }
    match (metadata["annotations"].as_object_mut(), value) {
        (Some(annotations), Some(value)) => {
            annotations.insert(name.to_owned(), value.into());
        }
        (Some(annotations), None) => {
            annotations.remove(name);
        }
        (None, Some(value)) => metadata["annotations"] = json!({name: value}),
        (None, None) => {}
    }
    true
}

/// `objects.yaml.lock`: no directory of objects takes it for one of them.
fn beside(path: &Path, extension: &str) -> Result<PathBuf> {
    let name = path.file_name().with_context(|| format!("{} is no file", path.display()))?;
    let mut name = name.to_owned();
    name.push(".");
    name.push(extension);
    Ok(path.with_file_name(name))
}
