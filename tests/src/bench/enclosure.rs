//! A thread inside a namespace, with mounts of its own, for programs that stay.
//!
//! Each agent finds an empty /run and an empty BPF file system, as on a node of its own; several
//! run at once here. Surprising: the kernel ends a child when the *thread* that started it ends
//! (`setpriv --pdeathsig`), so this thread lives as long as the enclosure.
use std::{
    fs::File,
    process::{Child, Command, Output},
    sync::mpsc::{Receiver, Sender, channel},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

use super::net::Netns;

type Job = Box<dyn FnOnce() + Send>;

/// Dropping it ends its thread, and with it the programs started in it.
#[derive(Debug)]
pub struct Enclosure {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Enclosure {
    /// An enclosure in this network namespace.
    pub fn new(netns: &Netns) -> Result<Self> {
        let namespace = netns.file().try_clone().context("a second handle of the namespace")?;
        let (jobs, inbox) = channel();
        let (told, outcome) = channel();
        let thread = thread::spawn(move || {
            let entered = enter(&namespace);
            let usable = entered.is_ok();
            // Nobody listens any more only if `new` is gone, and then there is nothing to do.
            if told.send(entered).is_ok() && usable {
                serve(inbox);
            }
        });
        outcome.recv().context("the enclosure's thread ended")??;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Runs `work` in the enclosure's thread.
    pub fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let (sender, answer) = channel();
        // The receiver waits below, unless this whole call was given up.
        let job: Job = Box::new(move || sender.send(work()).unwrap_or_default());
        let jobs = self.jobs.as_ref().context("the enclosure is closed")?;
        jobs.send(job).map_err(|_| anyhow!("the enclosure's thread has ended"))?;
        answer.recv().context("the enclosure's thread ended at work")
    }

    /// Starts a program that ends with the enclosure at the latest.
    pub fn spawn(&self, mut command: Command) -> Result<Child> {
        let name = command.get_program().to_string_lossy().into_owned();
        self.inside(move || command.spawn())?.with_context(|| format!("start {name}"))
    }

    /// Runs a program to its end.
    pub fn output(&self, mut command: Command) -> Result<Output> {
        let name = command.get_program().to_string_lossy().into_owned();
        self.inside(move || command.output())?.with_context(|| format!("run {name}"))
    }
}

impl Drop for Enclosure {
    fn drop(&mut self) {
        self.jobs = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("the thread of an enclosure panicked");
        }
    }
}

fn enter(namespace: &File) -> Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    for (kind, place) in [("bpf", "/sys/fs/bpf"), ("tmpfs", "/run")] {
        mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount {kind} on {place}"))?;
    }
    Ok(())
}

fn serve(inbox: Receiver<Job>) {
    for job in inbox {
        job();
    }
}
