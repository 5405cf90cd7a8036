//! Which workloads a level of effort runs, in the order of their weight.
use std::time::Duration;

use super::{
    campaign::{Effort, NEW_FLOWS},
    control::{Change, Task},
    estimate,
    variants::Variant,
    workload::{
        Entry::{Gateway, Tunnel},
        Flows::{Established, New},
        Talk, Workload,
    },
};

/// How much time to spend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Two minutes: the main figures.
    Quick,
    /// A quarter of an hour.
    Default,
    /// An hour and a half, with the whole grid.
    Full,
}

impl Level {
    /// Wall time that the data path shall take; the control plane's comes on top.
    fn budget(self) -> Duration {
        Duration::from_secs(match self {
            Self::Quick => 110,
            Self::Default => 720,
            Self::Full => 5400,
        })
    }

    /// The longest run worth having: beyond it, more rounds tell more.
    fn longest_run(self) -> Duration {
        Duration::from_millis(match self {
            Self::Quick => 120,
            Self::Default => 250,
            Self::Full => 400,
        })
    }

    fn rounds(self) -> u32 {
        match self {
            Self::Quick => 8,
            Self::Default => 12,
            Self::Full => 21,
        }
    }

    /// Shares the time out among all runs. `rounds`: other than this level's own.
    pub fn effort(
        self,
        workloads: &[Workload],
        variants: &[Box<dyn Variant>],
        rounds: Option<u32>,
    ) -> Effort {
        let rounds = rounds.unwrap_or(self.rounds());
        let run = estimate::run(workloads, variants, rounds, self.budget());
        let run = run.clamp(Duration::from_millis(30), self.longest_run());
        Effort { rounds, run, new_flows: NEW_FLOWS }
    }

    /// What is asked of the control plane.
    pub fn tasks(self) -> Vec<Task> {
        let (sizes, repeats): (&[u32], u32) = match self {
            Self::Quick => (&[1_000], 3),
            Self::Default => (&[1, 1_000, 10_000], 3),
            Self::Full => (&[1, 1_000, 10_000], 7),
        };
        let ones = sizes.iter().map(|vnids| Task::new(Change::One, *vnids, repeats));
        // A thousand calls of iptables do not fit into two minutes.
        let alls = sizes.iter().filter(|_| self != Self::Quick);
        let cluster = (self != Self::Quick).then(|| Task::new(Change::Cluster, 10, 10));
        let alls = alls.map(|vnids| Task::new(Change::All, *vnids, repeats));
        ones.chain(alls).chain(cluster).collect()
    }

    /// The workloads, those with the same rigs beside each other.
    pub fn workloads(self) -> Vec<Workload> {
        let mut all = quick();
        if self != Self::Quick {
            all.extend(default());
        }
        if self == Self::Full {
            all.extend(full());
        }
        // A sort keeps equals in their order, and so those of one setting together.
        all.sort_by_key(|workload| {
            let Workload { talk, rate, masquerade, policies, entry, .. } = workload;
            (talk.is_some(), *rate != 0, *masquerade, *policies, *entry)
        });
        all
    }
}

const TEN_THOUSAND: u32 = 10_000;
const MILLION: u32 = 1_000_000;

fn quick() -> Vec<Workload> {
    vec![
        Workload::new("tunnel/established-1", Tunnel, Established(1), 1),
        Workload::new("tunnel/established-10k", Tunnel, Established(TEN_THOUSAND), 1),
        Workload::new("tunnel/new", Tunnel, New, 1),
        Workload::new("tunnel/replies-10k", Tunnel, Established(TEN_THOUSAND), 1).replies(),
        Workload::new("gateway/established-10k", Gateway, Established(TEN_THOUSAND), 1),
        Workload::new("gateway/new-1000-vnids", Gateway, New, 1_000),
        Workload::new("gateway/masqueraded-10k", Gateway, Established(TEN_THOUSAND), 1)
            .masqueraded(),
    ]
}

fn default() -> Vec<Workload> {
    let ten_thousand = Established(TEN_THOUSAND);
    vec![
        Workload::new("tunnel/established-1m", Tunnel, Established(MILLION), 1),
        Workload::new("tunnel/payload-1200", Tunnel, Established(TEN_THOUSAND), 1).payload(1200),
        Workload::new("tunnel/latency-alone", Tunnel, Established(TEN_THOUSAND), 1).latency(1),
        Workload::new("tunnel/latency-loaded", Tunnel, Established(TEN_THOUSAND), 1).latency(64),
        Workload::new("tunnel/paced-100k", Tunnel, Established(TEN_THOUSAND), 1).paced(100_000),
        Workload::new("gateway/established-1", Gateway, Established(1), 1),
        Workload::new("gateway/established-1m", Gateway, Established(MILLION), 1),
        Workload::new("gateway/replies-10k", Gateway, Established(TEN_THOUSAND), 1).replies(),
        Workload::new("gateway/new", Gateway, New, 1),
        Workload::new("gateway/new-100-vnids", Gateway, New, 100),
        Workload::new("gateway/new-1000-vnids-last", Gateway, New, 1_000).last_vnid(),
        Workload::new("gateway/new-5000-vnids", Gateway, New, 5_000),
        Workload::new("gateway/new-5000-vnids-last", Gateway, New, 5_000).last_vnid(),
        Workload::sockets("sockets/stream", Talk::Stream, false),
        Workload::sockets("sockets/stream-offload", Talk::Stream, true),
        Workload::sockets("sockets/transactions", Talk::Transactions, false),
        Workload::sockets("sockets/connections", Talk::Connections, false),
        Workload::new("tunnel/established-10k-5000-vnids", Tunnel, ten_thousand, 5_000),
    ]
}

fn full() -> Vec<Workload> {
    let ten_thousand = Established(TEN_THOUSAND);
    let payload = |bytes: usize| {
        let name = format!("tunnel/payload-{bytes}");
        Workload::new(name, Tunnel, Established(TEN_THOUSAND), 1).payload(bytes)
    };
    vec![
        Workload::new("tunnel/established-10k-100000-vnids", Tunnel, ten_thousand, 100_000),
        Workload::new("tunnel/paced-20k", Tunnel, Established(TEN_THOUSAND), 1).paced(20_000),
        payload(200),
        payload(600),
        Workload::new("tunnel/replies-1", Tunnel, Established(1), 1).replies(),
        Workload::new("tunnel/replies-1m", Tunnel, Established(MILLION), 1).replies(),
        Workload::new("tunnel/new-100-vnids", Tunnel, New, 100),
        Workload::new("tunnel/new-1000-vnids", Tunnel, New, 1_000),
        Workload::new("tunnel/new-5000-vnids", Tunnel, New, 5_000),
        Workload::new("gateway/latency-loaded", Gateway, Established(TEN_THOUSAND), 1).latency(64),
    ]
}
