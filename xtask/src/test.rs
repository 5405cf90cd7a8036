//! `cargo xtask test`: every test there is, privileged ones included.
//!
//! Cargo compiles as the user; only the test binaries run as root, through cargo's runner setting.
//! Tests make namespaces and start agents, so few of them run at a time.
use std::{
    env,
    ffi::{OsStr, OsString},
    io::{self, BufReader, Write},
    path::Path,
    process::{Command, ExitCode},
    thread,
    time::Instant,
};

use anyhow::{Context, Result};

use crate::{
    build, leftovers,
    privilege::Privilege,
    transcript::{self, Sum},
};

/// A rig is some ten processes and namespaces: more at a time only slows all of them down.
const MAX_THREADS: usize = 4;

/// So many tests that fail are run once more. More is no accident of timing.
const MOST_AGAIN: usize = 4;

/// What `cargo xtask test` takes.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only tests whose names contain this
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Passed on to the test binaries
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

/// Returns cargo's exit code, or failure if the tests forgot a namespace on the host.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let privilege = Privilege::find(
        "run `cargo xtask test` as root; `cargo test` runs all tests that do not need it",
    )?;
    let egress = build::run()?;
    let before = leftovers::namespaces();
    let start = Instant::now();
    let mut sum = Sum::default();
    let mut documentation = cargo_test(&["--doc"]);
    documentation.args(&arguments.filter);
    let (mut code, mut held) = transcribe(documentation, &mut sum)?;
    if code == 0 {
        print!("{held}");
        let command = all_tests(&arguments.filter, &arguments.arguments, privilege, &egress)?;
        (code, held) = transcribe(command, &mut sum)?;
        let few = (1..=MOST_AGAIN).contains(&sum.failing.len());
        if code != 0 && few && transcript::all_came_to_a_result(&held, &sum) {
            print!("{held}");
            (code, held) = again(&sum.failing, privilege, &egress)?;
        }
    }
    println!("xtask: {sum}, {} s", start.elapsed().as_secs());
    if let Some(filter) = &arguments.filter
        && code == 0
        && sum.run() == 0
    {
        println!("xtask: no test has `{filter}` in its name");
        code = 1;
    }
    let forgotten = leftovers::since(&before);
    if !forgotten.is_empty() {
        println!("xtask: the tests left namespaces behind: {}", forgotten.join(" "));
        code = code.max(1);
    }
    print!("{held}");
    io::stdout().flush().context("write to standard output")?;
    Ok(ExitCode::from(code))
}

/// Rigs share a machine with each other and with strangers: what failed beside them may pass alone.
/// It is not hidden: the last lines name it.
fn again(failing: &[String], privilege: Privilege, egress: &Path) -> Result<(u8, String)> {
    println!("xtask: once more, alone: {}", failing.join(" "));
    let exact = ["--exact", "--test-threads", "1"].map(OsString::from);
    let arguments = exact.into_iter().chain(failing.iter().map(OsString::from)).collect::<Vec<_>>();
    let mut sum = Sum::default();
    let (code, held) = transcribe(all_tests(&None, &arguments, privilege, egress)?, &mut sum)?;
    if code == 0 && sum.passed >= failing.len() as u64 {
        println!("xtask: flaky, to be looked into: {}", failing.join(" "));
        return Ok((0, held));
    }
    Ok((code.max(1), held))
}

fn cargo_test(selection: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command
        .args(["test", "--workspace", "--exclude", "egress-ebpf", "--no-fail-fast"])
        .args(selection);
    command
}

fn all_tests(
    filter: &Option<String>,
    arguments: &[OsString],
    privilege: Privilege,
    egress: &Path,
) -> Result<Command> {
    let mut command = cargo_test(&["--lib", "--bins", "--tests", "--config"]);
    command
        .arg(runner(&privilege.prefix())?)
        .args(filter)
        .args(["--", "--include-ignored"])
        .args(arguments)
        .env("EGRESS_BIN", egress);
    if env::var_os("RUST_TEST_THREADS").is_none() {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        command.env("RUST_TEST_THREADS", cores.min(MAX_THREADS).to_string());
    }
    Ok(command)
}

/// The setting that makes cargo start every test binary with these words before it.
fn runner(prefix: &[OsString]) -> Result<String> {
    let words: Option<Vec<_>> =
        prefix.iter().map(|word| OsStr::to_str(word).map(|word| format!("{word:?}"))).collect();
    let words = words.context("PATH is not UTF-8")?;
    Ok(format!("target.'cfg(all())'.runner=[{}]", words.join(",")))
}

/// Runs cargo with both its outputs in one, so that they keep their order.
fn transcribe(mut command: Command, sum: &mut Sum) -> Result<(u8, String)> {
    let (reader, writer) = io::pipe().context("make a pipe")?;
    let stderr = writer.try_clone().context("clone the pipe")?;
    let mut child = command.stdout(writer).stderr(stderr).spawn().context("start cargo test")?;
    drop(command); // its ends of the pipe, else the reader never sees the end
    let held = transcript::copy(BufReader::new(reader), &mut io::stdout(), sum)
        .context("read the output of cargo test")?;
    let status = child.wait().context("wait for cargo test")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok((code, held))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runner_is_a_list_of_words_for_every_target() {
        let prefix = ["sudo", "-n", "PATH=/a b:/c"].map(OsString::from);
        assert_eq!(
            runner(&prefix).unwrap(),
            r#"target.'cfg(all())'.runner=["sudo","-n","PATH=/a b:/c"]"#
        );
    }
}
