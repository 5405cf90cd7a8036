//! The output of `cargo test`, passed on line by line and summed up.
//!
//! A run has many test binaries, each with a result line of its own. The sum of all must be seen,
//! yet the closing lines must stay cargo's: so the last ones are held back until the sum is out.
use std::{
    fmt,
    io::{self, BufRead, Write},
};

/// The added-up result lines of all test binaries.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub binaries: u64,
    pub passed: u64,
    pub failed: u64,
    pub ignored: u64,
    /// The names of those that failed.
    pub failing: Vec<String>,
    /// Binaries of which a test failed, in order: not those that broke off.
    pub failing_binaries: usize,
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { binaries, passed, failed, ignored, .. } = self;
        write!(
            f,
            "{passed} tests passed, {failed} failed, {ignored} ignored, in {binaries} binaries"
        )
    }
}

impl Sum {
    /// How many tests ran.
    pub fn run(&self) -> u64 {
        self.passed + self.failed
    }

    /// Takes `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; …` into the sum.
    fn add(&mut self, line: &str) {
        let mut words = line.split([' ', ';']).filter(|word| !word.is_empty()).peekable();
        self.binaries += 1;
        self.failing_binaries += usize::from(line.contains("FAILED"));
        while let Some(word) = words.next() {
            let Ok(count) = word.parse::<u64>() else { continue };
            match words.peek() {
                Some(&"passed") => self.passed += count,
                Some(&"failed") => self.failed += count,
                Some(&"ignored") => self.ignored += count,
                _ => {}
            }
        }
    }
}

/// Copies `input` to `output` and adds up. Returns the lines held back: the last result line and
/// what cargo says after it.
pub fn copy(input: impl BufRead, output: &mut impl Write, sum: &mut Sum) -> io::Result<String> {
    let mut held = String::new();
    for line in input.split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        let is_result = line.starts_with("test result:");
        if is_result {
            sum.add(&line);
        } else if let Some(name) = failing(&line) {
            sum.failing.push(name.to_owned());
        }
        if is_result || !follows_result(&line) {
            output.write_all(held.as_bytes())?;
            held.clear();
        }
        if is_result || !held.is_empty() {
            held.push_str(&line);
            held.push('\n');
        } else {
            writeln!(output, "{line}")?;
            output.flush()?;
        }
    }
    Ok(held)
}

/// Of `test NAME ... FAILED`.
fn failing(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

/// Whether every binary that cargo names as failed came to its result: none broke off.
pub fn all_came_to_a_result(held: &str, sum: &Sum) -> bool {
    held.lines().filter(|line| line.starts_with("    `")).count() == sum.failing_binaries
}

/// What cargo prints after the last result: nothing, or which binaries failed.
fn follows_result(line: &str) -> bool {
    line.is_empty() || line.starts_with("error:") || line.starts_with("    `")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copied(input: &str) -> (String, String, Sum) {
        let mut output = Vec::new();
        let mut sum = Sum::default();
        let held = copy(input.as_bytes(), &mut output, &mut sum).unwrap();
        (String::from_utf8(output).unwrap(), held, sum)
    }

    const FIRST: &str = "\nrunning 1 test\ntest a ... ok\n\ntest result: ok. 1 passed; 0 failed; \
                         2 ignored; 0 measured; 4 filtered out; finished in 0.50s\n\n";

    #[test]
    fn the_last_result_is_held_back_and_all_are_summed_up() {
        let last = "test result: ok. 20 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; \
                    finished in 1.00s\n\n";
        let (output, held, sum) = copied(&format!("{FIRST}     Running b\n{last}"));
        assert_eq!(output, format!("{FIRST}     Running b\n"));
        assert_eq!(held, last);
        assert_eq!(sum, Sum { binaries: 2, passed: 21, ignored: 2, ..Sum::default() });
    }

    #[test]
    fn cargos_list_of_failed_binaries_stays_last() {
        let last = "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered \
                    out; finished in 1.00s\n\nerror: 1 target failed:\n    `-p b --lib`\n";
        let (output, held, sum) = copied(&format!("{FIRST}     Running b\n{last}"));
        assert_eq!(output, format!("{FIRST}     Running b\n"));
        assert_eq!(held, last);
        assert_eq!(sum.failed, 1);
    }

    #[test]
    fn failing_tests_are_known_by_name_and_a_binary_that_broke_off_is_noticed() {
        let result = "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered \
                      out; finished in 1.00s\n\n";
        let (_, held, sum) = copied(&format!(
            "test a::b ... FAILED\n{result}error: 1 target failed:\n    `-p b --lib`\n"
        ));
        assert_eq!(sum.failing, ["a::b"]);
        assert!(all_came_to_a_result(&held, &sum));
        let (_, held, sum) = copied(&format!(
            "test a::b ... FAILED\n{result}error: 2 targets failed:\n    `-p b --lib`\n    `-p c`\n"
        ));
        assert!(!all_came_to_a_result(&held, &sum));
    }

    #[test]
    fn a_run_that_does_not_compile_is_passed_on_whole() {
        let text = "error: expected item\n\nerror: could not compile `b`\n";
        assert_eq!(copied(text), (text.to_owned(), String::new(), Sum::default()));
    }
}
