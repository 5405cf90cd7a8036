//! What a running agent takes over from its files. Bad input never loses the good: what cannot be
//! read leaves everything as it was, and a condition says so until the files change again.
use log::info;

use super::{Agent, node};
use crate::{
    condition::{Condition, Reason},
    config::AgentConfig,
    source::files::Input,
};

impl Agent {
    /// Reads the files if they have changed. Returns whether they have.
    pub(super) fn reload(&mut self) -> bool {
        match self.watched.changed() {
            Ok(None) => return false,
            Ok(Some(input)) => self.take_over(input),
            Err(error) => {
                self.unread = Some(Condition::new(
                    "Agent/files",
                    Reason::Invalid,
                    format!("{error:#}; the settings and all objects stay as they were"),
                ));
            }
        }
        true
    }

    fn take_over(&mut self, input: Input) {
        info!("the files changed");
        self.unread = None;
        let Input { mut objects, config } = input;
        objects.keep_refused(&self.objects);
        self.objects = objects;
        self.plans.forget();
        self.dealt_out = None;
        // Without an AgentConfig the defaults are asked for, as at a start.
        let (settings, waiting) = self.config.reloaded(config.unwrap_or_default());
        self.waiting = needs_restart(&waiting);
        if settings != self.config {
            info!("the settings changed");
            self.config = settings;
            self.schedule.set(node::announcing(&self.config));
        }
    }
}

fn needs_restart(keys: &[&str]) -> Option<Condition> {
    if keys.is_empty() {
        return None;
    }
    let message = format!(
        "{}: changed in the file, and not taken over by a running agent: restart it ({})",
        keys.join(", "),
        if keys.iter().any(|key| key.ends_with(".max")) {
            "after `egress cleanup`, since the maps keep the size they were made with"
        } else {
            "traffic goes on meanwhile if it is killed rather than stopped"
        }
    );
    Some(Condition::new("AgentConfig/agent", Reason::NeedsRestart, message))
}

/// What is allowed in the settings and unwise, or has no effect yet.
pub(super) fn warn_of(config: &AgentConfig) {
    for warning in config.warnings() {
        log::warn!("{warning}");
    }
    if config.metrics.is_some() {
        log::warn!("metrics is set, but this release does not do anything with it yet");
    }
}
