//! The project's own goals, held against the outcome.
use std::fmt::Write as _;

use super::Outcome;
use crate::bench::stats::Summary;

/// Ours against a reference under one workload.
struct Goal {
    what: &'static str,
    ours: &'static str,
    workload: &'static str,
    reference: &'static str,
    /// The ratio (reference's cost by ours) that must be reached, and the one that is wished for.
    floor: f64,
    goal: f64,
}

const fn goal(
    what: &'static str,
    ours: &'static str,
    workload: &'static str,
    reference: &'static str,
    floor: f64,
    goal: f64,
) -> Goal {
    Goal { what, ours, workload, reference, floor, goal }
}

const IPTABLES: &str = "iptables-legacy";
const MAP: &str = "nft-map";
const TC: &str = "egress-tc";
const XDP: &str = "egress-xdp";

/// Costs against the XDP redirect are ratios below 1: a cost of 1.3 times is 0.77.
const GOALS: &[Goal] = &[
    goal("VXLAN in, established", TC, "tunnel/established-1", IPTABLES, 2.2, 3.0),
    goal("VXLAN in, established", TC, "tunnel/established-10k", IPTABLES, 2.2, 3.0),
    goal("VXLAN in, established", XDP, "tunnel/established-1", IPTABLES, 5.0, 8.0),
    goal("VXLAN in, established", XDP, "tunnel/established-10k", IPTABLES, 5.0, 8.0),
    goal("no VXLAN, established", TC, "gateway/established-10k", IPTABLES, 1.3, 1.8),
    goal("no VXLAN, established", TC, "gateway/established-1", IPTABLES, 1.3, 1.8),
    goal("plain redirect", XDP, "tunnel/established-1", "xdp-redirect", 1.0 / 1.6, 1.0 / 1.3),
    goal("plain redirect", XDP, "tunnel/established-10k", "xdp-redirect", 1.0 / 2.4, 1.0 / 1.8),
    goal("no VXLAN, new", TC, "gateway/new", IPTABLES, 1.2, 1.5),
    goal("no VXLAN, new, 1,000", TC, "gateway/new-1000-vnids", IPTABLES, 4.0, 6.0),
    goal("no VXLAN, new, 5,000", TC, "gateway/new-5000-vnids", IPTABLES, 14.0, 20.0),
    goal("no VXLAN, new", TC, "gateway/new", MAP, 1.1, 1.5),
    goal("VXLAN in, new", TC, "tunnel/new", IPTABLES, 1.8, 2.3),
    goal("VXLAN in, new", TC, "tunnel/new", MAP, 1.8, 2.3),
    goal("VXLAN in, new", XDP, "tunnel/new", IPTABLES, 3.0, 4.0),
    goal("VXLAN in, new", XDP, "tunnel/new", MAP, 3.0, 4.0),
    goal("VXLAN out, replies", TC, "tunnel/replies-10k", IPTABLES, 2.0, 2.6),
    goal("VXLAN out, replies", XDP, "tunnel/replies-10k", IPTABLES, 5.0, 8.0),
    goal("TCP stream", TC, "sockets/stream", IPTABLES, 0.95, 1.0),
    goal("TCP stream, offload", TC, "sockets/stream-offload", IPTABLES, 0.95, 1.0),
    goal("TCP request, response", TC, "sockets/transactions", IPTABLES, 0.95, 1.0),
];

/// More VNIDs must not cost more: the same workload with many and with one.
const SPREADS: [(&str, &str, &str); 4] = [
    (TC, "tunnel/established-10k-5000-vnids", "tunnel/established-10k"),
    (XDP, "tunnel/established-10k-5000-vnids", "tunnel/established-10k"),
    (TC, "tunnel/established-10k-100000-vnids", "tunnel/established-10k"),
    (XDP, "tunnel/established-10k-100000-vnids", "tunnel/established-10k"),
];

fn verdict(value: f64, floor: f64, goal: f64) -> &'static str {
    if value >= goal {
        "goal met"
    } else if value >= floor {
        "above the floor"
    } else {
        "MISSED"
    }
}

/// One line a goal, those that were not measured too.
pub fn table(outcome: &Outcome) -> String {
    let mut text = String::new();
    for Goal { what, ours, workload, reference, floor, goal } in GOALS {
        let ratio = outcome.line(workload, ours).and_then(|line| line.ratios.get(*reference));
        let outcome = match ratio {
            Some(Summary { median, q1, q3, .. }) => format!(
                "{median:6.2} ({q1:.2} to {q3:.2}); floor {floor:.2}, goal {goal:.2}: {}",
                verdict(*median, *floor, *goal)
            ),
            None => format!("not measured; floor {floor:.2}, goal {goal:.2}"),
        };
        writeln!(text, "{what:<22} {ours:<10} against {reference:<16} {workload:<24} {outcome}")
            .expect("a string takes everything");
    }
    for (ours, many, one) in SPREADS {
        let cost = |workload| outcome.line(workload, ours)?.cost;
        let verdict = match cost(many).zip(cost(one)) {
            Some((many, one)) => {
                let ratio = many.median / one.median;
                let verdict = verdict(1.0 / ratio, 1.0 / 1.15, 1.0 / 1.05);
                format!("{ratio:.2}; floor 1.15, goal 1.05: {verdict}")
            }
            None => "not measured; floor 1.15, goal 1.05".to_owned(),
        };
        writeln!(text, "{ours:<10} cost of {many} by that of {one}: {verdict}")
            .expect("a string takes everything");
    }
    text
}
