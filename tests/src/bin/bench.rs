//! `bench`: measures the data path against its competitors.
use std::time::Duration;

use anyhow::Result;
use egress_tests::bench::{
    campaign::{self, Effort},
    net,
    stats::Summary,
    variants::{Builds, catalogue},
    workload::{Entry, Flows, Workload},
};

fn main() -> Result<()> {
    net::sandbox()?;
    let effort = Effort { rounds: 4, run: Duration::from_millis(50), new_flows: 20_000 };
    let workloads = [
        Workload::new("gateway-1", Entry::Gateway, Flows::Established(1), 1),
        Workload::new("gateway-new", Entry::Gateway, Flows::New, 1),
        Workload::new("tunnel-10k", Entry::Tunnel, Flows::Established(10_000), 1),
        Workload::new("tunnel-10k-replies", Entry::Tunnel, Flows::Established(10_000), 1).replies(),
    ];
    let rows = campaign::run(&workloads, || catalogue(&Builds::default()), effort, 1)?;
    for row in rows {
        let ns = Summary::of(row.samples.iter().map(|sample| sample.ns));
        println!(
            "{} {} {:?} {:?}",
            row.workload.name,
            row.variant,
            ns.map(|ns| ns.median),
            row.void
        );
    }
    Ok(())
}
