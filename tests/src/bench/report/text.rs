//! The outcome in words: a table for the terminal, a report in Markdown.
use std::fmt::Write as _;

use super::{Line, Outcome, REFERENCES, goals};
use crate::bench::{memory, stats::Summary};

/// The cells of one line, as both tables show them.
fn cells(line: &Line) -> Vec<String> {
    let Some(cost) = line.cost else {
        let reason = line.void.as_deref().unwrap_or("no round was run");
        return vec![line.variant.clone(), format!("void: {}", one_line(reason))];
    };
    let mut cells = vec![
        line.variant.clone(),
        format!("{:.0}", cost.median),
        format!("{:.0} to {:.0}", cost.q1, cost.q3),
        format!("{:.0}", 1e6 / cost.median),
    ];
    cells.extend(REFERENCES.map(|name| match line.ratios.get(name) {
        Some(ratio) => ratio_text(ratio),
        None if line.variant == name => "1".to_owned(),
        None => String::new(),
    }));
    cells.push(format!("{}/{}", line.steal, line.switches));
    cells
}

fn ratio_text(ratio: &Summary) -> String {
    format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.q1, ratio.q3)
}

/// The first line of a reason, short enough for a table.
fn one_line(reason: &str) -> String {
    let line = reason.lines().next().unwrap_or_default().replace('|', "/");
    match line.char_indices().nth(160) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

fn heading() -> Vec<String> {
    let mut heading = ["variant", "ns", "quartiles", "thousand/s"].map(str::to_owned).to_vec();
    heading.extend(REFERENCES.map(|name| format!("against {name}")));
    heading.push("steal/switches".to_owned());
    heading
}

/// What no column has room for: percentiles, and the other build.
fn notes(line: &Line) -> Vec<String> {
    let name = &line.variant;
    let latency = line.latency.map(|[half, most, nearly_all]| {
        format!("{name}: 50 % {half} ns, 99 % {most} ns, 99.9 % {nearly_all} ns")
    });
    let share = line.cost.filter(|_| line.workload.rate != 0).map(|cost| {
        let rate = line.workload.rate;
        let percent = cost.median * f64::from(rate) / 1e7;
        format!("{name}: {percent:.1} % of a core at {rate} packets a second")
    });
    let other = line.ratios.iter().find(|(other, _)| !REFERENCES.contains(&other.as_str()));
    let other =
        other.map(|(other, ratio)| format!("{name} against {other}: {}", ratio_text(ratio)));
    latency.into_iter().chain(share).chain(other).collect()
}

/// A workload's name, and what its costs are counted by.
fn title(lines: &[&Line]) -> String {
    lines.first().map_or_else(String::new, |line| {
        format!("{} (cost of a {})", line.workload.name, line.workload.unit())
    })
}

/// One block a workload, columns aligned.
pub fn terminal(outcome: &Outcome) -> String {
    let mut text = String::new();
    for name in outcome.workloads() {
        let lines: Vec<&Line> =
            outcome.lines.iter().filter(|line| line.workload.name == name).collect();
        let rows: Vec<Vec<String>> =
            [heading()].into_iter().chain(lines.iter().map(|line| cells(line))).collect();
        let width = |column: usize| {
            // A void row's reason is not a column.
            let full = rows.iter().filter(|row| row.len() > 2);
            full.filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        writeln!(text, "{}", title(&lines)).expect("a string takes everything");
        for row in &rows {
            let cells = row.iter().enumerate().map(|(column, cell)| {
                let width = width(column).unwrap_or(0).max(if column == 0 { 16 } else { 0 });
                if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            writeln!(text, "  {}", line.trim_end()).expect("a string takes everything");
        }
        for line in lines {
            for note in notes(line) {
                writeln!(text, "  {note}").expect("a string takes everything");
            }
        }
        text.push('\n');
    }
    text + &control(outcome) + &memory(outcome) + &goals::table(outcome)
}

/// The control plane's lines, in milliseconds; empty if nothing was asked of it.
fn control(outcome: &Outcome) -> String {
    let mut text = String::new();
    let mut task = "";
    for line in &outcome.control {
        if line.task.name != task {
            task = &line.task.name;
            text += &format!("{task} (milliseconds)\n");
        }
        let means = &line.means;
        match (&line.time, &line.void) {
            (Some(time), _) => {
                let Summary { min, median, max, .. } = time;
                text += &format!("  {means:<30} {median:10.1}  ({min:.1} to {max:.1})\n");
            }
            (None, reason) => {
                let reason = one_line(reason.as_deref().unwrap_or("never measured"));
                text += &format!("  {means:<30} void: {reason}\n");
            }
        }
    }
    if text.is_empty() { text } else { text + "\n" }
}

/// Bytes a flow; empty if that was not asked.
fn memory(outcome: &Outcome) -> String {
    let mut text = String::new();
    for line in &outcome.memory {
        let figure = match (line.bytes, &line.void) {
            (Some(bytes), _) => format!("{bytes:.0}"),
            (None, reason) => {
                format!("void: {}", one_line(reason.as_deref().unwrap_or("never measured")))
            }
        };
        text += &format!("  {:<30} {figure:>10}\n", line.means);
    }
    if text.is_empty() { text } else { format!("{} (bytes)\n{text}\n", memory::NAME) }
}

/// The report, with the charts beside it.
pub fn markdown(outcome: &Outcome, charts: &[(&str, &str)]) -> String {
    let machine = &outcome.machine;
    let mut text = format!(
        "# Benchmark\n\n\
         {} ({} cores, {} MiB{}), kernel {}, commit {}.\n\
         {} rounds in shuffled order (seed {}), the first dropped.\n\n\
         The cost of a packet is CPU time of the sending thread and its core's ksoftirqd: \
         generator, node and sink together. A ratio says how many times cheaper a variant is than \
         the reference, as the median of the rounds' own ratios, with quartiles. Absolute \
         figures hold for this machine only.\n\n",
        machine.processor,
        machine.cores,
        machine.memory_mib,
        if machine.virtual_machine { ", virtual" } else { "" },
        machine.kernel,
        machine.commit,
        outcome.effort.rounds,
        outcome.seed,
    );
    for (file, title) in charts {
        text += &format!("![{title}]({file})\n\n");
    }
    text += &format!("## Goals\n\n```text\n{}```\n\n", goals::table(outcome));
    for name in outcome.workloads() {
        let lines: Vec<&Line> =
            outcome.lines.iter().filter(|line| line.workload.name == name).collect();
        text += &format!("## {}\n\n", title(&lines));
        let heading = heading();
        text += &format!("| {} |\n|{}\n", heading.join(" | "), " --- |".repeat(heading.len()));
        for line in &lines {
            text += &format!("| {} |\n", cells(line).join(" | "));
        }
        text.push('\n');
        for line in &lines {
            for note in notes(line) {
                text += &format!("- {note}\n");
            }
        }
    }
    let control = control(outcome);
    if !control.is_empty() {
        text += "\n## Control plane\n\nFrom the change to the first packet that obeys it.\n\n";
        text += &format!("```text\n{control}```\n");
    }
    let memory = memory(outcome);
    if !memory.is_empty() {
        text += &format!("\n## Memory\n\n```text\n{memory}```\n");
    }
    text += "\n## Machine\n\n";
    let tables = match (machine.conntrack_max, machine.conntrack_buckets) {
        (Some(max), Some(buckets)) => format!("conntrack: {max} flows, {buckets} buckets"),
        _ => "conntrack: unknown".to_owned(),
    };
    for fact in machine.versions.iter().chain([&tables]).chain(&machine.mitigations) {
        text += &format!("- {fact}\n");
    }
    text
}
