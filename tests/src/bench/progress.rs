//! One line on the terminal: what is under way, and how long it will take.
use std::{
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

/// Each step comes with the time planned for it. What is left is planned too, and stretched by what
/// the steps so far took beyond their plan.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    done: Duration,
    total: Duration,
}

impl Progress {
    /// Steps of so much time in all are to come.
    pub fn new(total: Duration) -> Self {
        Self { started: Instant::now(), done: Duration::ZERO, total }
    }

    /// A step begins that will have taken so long.
    pub fn step(&mut self, what: &str, planned: Duration) {
        let left = self.left(self.started.elapsed()).as_secs();
        let share = self.done.as_secs_f64() / self.total.as_secs_f64().max(1.0) * 100.0;
        say(&format!("{share:3.0} %, {}:{:02} left: {what}", left / 60, left % 60));
        self.done += planned;
    }

    fn left(&self, elapsed: Duration) -> Duration {
        let planned = self.total.saturating_sub(self.done);
        // The first steps say little of the others.
        let stretch = match self.done * 20 > self.total {
            true => elapsed.as_secs_f64() / self.done.as_secs_f64(),
            false => 1.0,
        };
        planned.mul_f64(stretch)
    }
}

/// Replaces the line on the terminal; silent where there is none.
pub fn say(what: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{what}");
        std::io::stderr().flush().unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_follows_the_plan_and_then_what_the_steps_took() {
        let mut progress = Progress::new(Duration::from_secs(100));
        assert_eq!(progress.left(Duration::ZERO), Duration::from_secs(100));
        progress.step("a long one", Duration::from_secs(20));
        assert_eq!(progress.left(Duration::from_secs(30)), Duration::from_secs(120));
    }

    #[test]
    fn a_plan_of_no_time_has_none_left() {
        let mut progress = Progress::new(Duration::ZERO);
        progress.step("a test", Duration::from_secs(1));
        assert_eq!(progress.left(Duration::from_secs(9)), Duration::ZERO);
    }
}
