//! What a release build of cargo leaves and where, read from cargo's own messages: a target
//! directory may hold the outputs of older builds too, and may lie elsewhere.
use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

/// The outputs of one package.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Artifacts {
    /// Absolute paths of the executables that were asked for.
    pub executables: Vec<PathBuf>,
    /// The directory that the package's build script wrote to.
    pub out_dir: Option<PathBuf>,
}

/// `cargo build --release --package PACKAGE SELECTION`. Progress and errors go to standard error.
pub fn build(package: &str, selection: &[&str]) -> Result<Artifacts> {
    let output = Command::new("cargo")
        .args(["build", "--release", "--package", package])
        .args(selection)
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo")?;
    ensure!(output.status.success(), "building {package} failed, see above");
    Ok(read(package, &String::from_utf8_lossy(&output.stdout)))
}

fn read(package: &str, messages: &str) -> Artifacts {
    // The identifier names the package only where its directory has another name.
    let spellings = [format!("/{package}#"), format!("#{package}@")];
    let mut artifacts = Artifacts::default();
    for message in messages.lines() {
        let id = field(message, "package_id").unwrap_or_default();
        if !spellings.iter().any(|spelling| id.contains(spelling)) {
            continue;
        }
        artifacts.executables.extend(field(message, "executable").map(PathBuf::from));
        if let Some(out_dir) = field(message, "out_dir") {
            artifacts.out_dir = Some(out_dir.into());
        }
    }
    artifacts
}

/// The text of `"name":"text"` in one line of JSON; `None` also where the value is no text.
/// No value looked for here holds a quotation mark: they are paths and package names.
fn field<'a>(message: &'a str, name: &str) -> Option<&'a str> {
    let start = format!("\"{name}\":\"");
    let (_, rest) = message.split_once(&start)?;
    rest.split_once('"').map(|(value, _)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_outputs_of_the_package_are_taken() {
        let messages = concat!(
            r#"{"reason":"build-script-executed","package_id":"path+file:///p/other#0.1.0","out_dir":"/t/other/out"}"#,
            "\n",
            r#"{"reason":"build-script-executed","package_id":"path+file:///p/egress-user#0.1.0","out_dir":"/t/a b/out"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","package_id":"path+file:///p/egress-user#0.1.0","executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","package_id":"path+file:///p/egress-user#0.1.0","executable":"/t/release/egress"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(
            read("egress-user", messages),
            Artifacts {
                executables: vec!["/t/release/egress".into()],
                out_dir: Some("/t/a b/out".into()),
            }
        );
    }

    #[test]
    fn a_package_in_a_directory_of_another_name_is_found() {
        let message = r#"{"package_id":"path+file:///p/tests#egress-tests@0.1.0","executable":"/t/release/demo"}"#;
        let artifacts = read("egress-tests", message);
        assert_eq!(artifacts.executables, [PathBuf::from("/t/release/demo")]);
    }
}
