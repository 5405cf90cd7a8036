//! The charts, as SVG with a transparent ground.
//!
//! Text and axes have one ink colour, which a style sheet inside the file swaps where the reader
//! prefers dark; the series' colours are of middle brightness and read on both.
use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::{Line, Outcome};
use crate::bench::workload::{Direction, Entry, Flows, Workload};

const INK: RGBColor = RGBColor(0x1f, 0x23, 0x28);
const STYLE: &str = "<style>@media (prefers-color-scheme: dark) { \
    [fill=\"#1F2328\"] { fill: #E6EDF3 } [stroke=\"#1F2328\"] { stroke: #E6EDF3 } }</style>";
const COLOURS: [RGBColor; 10] = [
    RGBColor(0x2f, 0x81, 0xf7),
    RGBColor(0xdb, 0x6d, 0x28),
    RGBColor(0x2d, 0xa0, 0x4a),
    RGBColor(0xbf, 0x4b, 0x8a),
    RGBColor(0x8a, 0x63, 0xd2),
    RGBColor(0xb0, 0x88, 0x00),
    RGBColor(0x1b, 0x9e, 0x9e),
    RGBColor(0x84, 0x8d, 0x97),
    RGBColor(0xd1, 0x3f, 0x4d),
    RGBColor(0x6a, 0x8f, 0x2d),
];
const GREY: RGBColor = COLOURS[7];
const FONT: &str = "sans-serif";
const WIDTH: u32 = 860;

/// Workloads whose ratios are drawn.
const MAIN: [&str; 4] =
    ["tunnel/established-10k", "tunnel/new", "tunnel/replies-10k", "gateway/established-10k"];

/// All charts that the outcome has figures for: file name, title, SVG.
pub fn all(outcome: &Outcome) -> Result<Vec<(&'static str, &'static str, String)>> {
    let mut charts = Vec::new();
    let title = "How many times cheaper than iptables with one rule";
    charts.extend(ratios(outcome, title)?.map(|svg| ("ratios.svg", title, svg)));
    let title = "Cost of a new flow against the number of rules (VNIDs)";
    let rules = |line: &Line| {
        let Workload { flows, policies, vnid_count, entry, .. } = line.workload;
        let all_vnids = flows == Flows::New && vnid_count == policies && entry == Entry::Gateway;
        all_vnids.then_some(f64::from(policies))
    };
    charts.extend(curves(outcome, title, "rules", rules)?.map(|svg| ("rules.svg", title, svg)));
    let title = "Cost of a packet out of the tunnel against the number of established flows";
    let flows = |line: &Line| {
        let Workload { entry, direction, policies, payload, timed, rate, talk, .. } = line.workload;
        let Flows::Established(flows) = line.workload.flows else { return None };
        let flat_out = !timed && rate == 0 && talk.is_none();
        let plain = policies == 1 && payload == 18 && flat_out;
        (plain && entry == Entry::Tunnel && direction == Direction::Original)
            .then_some(f64::from(flows))
    };
    charts.extend(curves(outcome, title, "flows", flows)?.map(|svg| ("flows.svg", title, svg)));
    Ok(charts)
}

/// A drawing error has a life time that no `Result` of ours can carry.
fn told<T>(drawn: Result<T, impl std::fmt::Display>) -> Result<T> {
    drawn.map_err(|error| anyhow!("draw a chart: {error}"))
}

/// The style sheet goes in right behind the opening tag.
fn styled(svg: &str) -> String {
    match svg.match_indices('>').find(|(at, _)| svg[..*at].contains("<svg")) {
        Some((at, _)) => format!("{}{STYLE}{}", &svg[..=at], &svg[at + 1..]),
        None => svg.to_owned(),
    }
}

fn ratios(outcome: &Outcome, title: &str) -> Result<Option<String>> {
    let reference = "iptables-legacy";
    let bars: Vec<(&Line, f64, f64, f64)> = MAIN
        .iter()
        .flat_map(|name| outcome.lines.iter().filter(move |line| line.workload.name == *name))
        .filter_map(|line| {
            // Dropping everything is no way of doing the job, and would flatten all other bars.
            let ratio = line.ratios.get(reference).filter(|_| line.variant != "xdp-drop")?;
            Some((line, ratio.median, ratio.q1, ratio.q3))
        })
        .collect();
    let Some(most) = bars.iter().map(|bar| bar.3).max_by(f64::total_cmp) else { return Ok(None) };
    let (row, top, left, right) = (20, 40, 210, 60);
    let groups = MAIN.iter().filter(|name| bars.iter().any(|bar| bar.0.workload.name == **name));
    let height = top + (bars.len() + groups.count()) as i32 * row + 20;
    let scale = f64::from(WIDTH as i32 - left - right) / most.max(1.0);
    let x = |ratio: f64| left + (ratio * scale) as i32;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height as u32)).into_drawing_area();
        let text = |size: i32| (FONT, size).into_font().color(&INK);
        told(area.draw(&Text::new(title.to_owned(), (10, 10), text(17))))?;
        let mut y = top;
        let mut group = "";
        for (line, median, low, high) in bars {
            if line.workload.name != group {
                group = &line.workload.name;
                told(area.draw(&Text::new(group.to_owned(), (10, y + 4), text(14))))?;
                y += row;
            }
            let ours = line.variant.starts_with("egress");
            let colour = if ours { COLOURS[0] } else { GREY };
            let bar = [(x(0.0), y + 3), (x(median), y + row - 3)];
            told(area.draw(&Rectangle::new(bar, colour.filled())))?;
            let whisker = vec![(x(low), y + row / 2), (x(high), y + row / 2)];
            told(area.draw(&PathElement::new(whisker, INK.stroke_width(2))))?;
            told(area.draw(&Text::new(line.variant.clone(), (24, y + 4), text(13))))?;
            let figure = format!("{median:.2}");
            told(area.draw(&Text::new(figure, (x(high.max(median)) + 6, y + 4), text(13))))?;
            y += row;
        }
        let one = vec![(x(1.0), top), (x(1.0), height - 16)];
        told(area.draw(&PathElement::new(one, INK.stroke_width(1))))?;
        told(area.present())?;
    }
    Ok(Some(styled(&svg)))
}

/// One curve a variant over `x`; lines for which `x` is `None` are no part of the chart.
fn curves(
    outcome: &Outcome,
    title: &str,
    unit: &str,
    x: impl Fn(&Line) -> Option<f64>,
) -> Result<Option<String>> {
    let mut series: Vec<(&str, Vec<(f64, f64)>)> = Vec::new();
    for line in &outcome.lines {
        let (Some(x), Some(cost)) = (x(line), line.cost) else { continue };
        if line.variant == "xdp-drop" {
            continue;
        }
        match series.iter_mut().find(|(name, _)| *name == line.variant) {
            Some((_, points)) => points.push((x, cost.median)),
            None => series.push((&line.variant, vec![(x, cost.median)])),
        }
    }
    for (_, points) in &mut series {
        points.sort_by(|left, right| left.0.total_cmp(&right.0));
    }
    series.retain(|(_, points)| points.len() > 1);
    let points = || series.iter().flat_map(|(_, points)| points);
    let extreme = |of: fn(&(f64, f64)) -> f64| {
        let low = points().map(of).min_by(f64::total_cmp);
        Some((low?, points().map(of).max_by(f64::total_cmp)?))
    };
    let (Some((left, right)), Some((low, high))) = (extreme(|p| p.0), extreme(|p| p.1)) else {
        return Ok(None);
    };
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, 420)).into_drawing_area();
        let text = |size: i32| (FONT, size).into_font().color(&INK);
        let mut builder = ChartBuilder::on(&area);
        builder.caption(title, text(17)).margin(12).margin_right(170);
        builder.x_label_area_size(42).y_label_area_size(70);
        let (across, up) = ((left..right).log_scale(), (low * 0.7..high * 1.3).log_scale());
        let mut chart = told(builder.build_cartesian_2d(across, up))?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(unit).y_desc("ns a packet").axis_style(INK).label_style(text(13));
        mesh.axis_desc_style(text(14)).light_line_style(TRANSPARENT);
        mesh.bold_line_style(INK.mix(0.15)).x_label_formatter(&|x| format!("{x:.0}"));
        told(mesh.y_label_formatter(&|y| format!("{y:.0}")).draw())?;
        for (number, (name, points)) in series.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let width = if name.starts_with("egress") { 3 } else { 2 };
            let style = colour.stroke_width(width);
            told(chart.draw_series(LineSeries::new(points.iter().copied(), style)))?;
            let y = 54 + 20 * number as i32;
            let (from, to) = ((WIDTH as i32 - 155, y), (WIDTH as i32 - 135, y));
            told(area.draw(&PathElement::new(vec![from, to], style)))?;
            told(area.draw(&Text::new((*name).to_owned(), (to.0 + 6, y - 6), text(13))))?;
            let dots = points.iter().map(|point| Circle::new(*point, 3, colour.filled()));
            told(chart.draw_series(dots))?;
        }
        told(area.present())?;
    }
    Ok(Some(styled(&svg)))
}
