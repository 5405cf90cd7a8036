//! `egress vnid`: the conversions that are otherwise done by hand.
use anyhow::Result;
use clap::value_parser;
use egress_common::mark::{Layout, MAX_VNID, mark};
use serde::Serialize;

use super::{Exit, Output, input::CompatArg, print};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// VNIDs, decimal (7305526) or hex (0x6f7936)
    #[arg(required = true, value_parser = parse_vnid)]
    vnids: Vec<u32>,
    /// kube-proxy's bit in the mark
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = value_parser!(u8).range(..32))]
    masquerade_bit: u8,
    /// old: OpenShift 4.2 to 4.7, new: 4.8 and later [default: new; the table shows both]
    #[arg(long)]
    compat: Option<CompatArg>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Row {
    vnid: u32,
    hex: String,
    mark: String,
}

pub fn run(args: Args) -> Result<Exit> {
    let rows = |layout| args.vnids.iter().map(move |&vnid| row(vnid, args.masquerade_bit, layout));
    let layout = args.compat.map_or(Layout::New, CompatArg::layout);
    let text = match args.output {
        Output::Json => serde_json::to_string_pretty(&rows(layout).collect::<Vec<_>>())? + "\n",
        Output::Yaml => serde_saphyr::to_string(&rows(layout).collect::<Vec<_>>())?,
        Output::Table if args.compat.is_some() => {
            let lines = rows(layout).map(|row| line(&row.vnid.to_string(), &row.hex, &[&row.mark]));
            line("VNID", "HEX", &["MARK"]) + &lines.collect::<String>()
        }
        Output::Table => {
            let lines = rows(Layout::New)
                .zip(rows(Layout::Old))
                .map(|(new, old)| line(&new.vnid.to_string(), &new.hex, &[&new.mark, &old.mark]));
            line("VNID", "HEX", &["MARK", "MARK (compat old)"]) + &lines.collect::<String>()
        }
    };
    print(&text)?;
    Ok(Exit::Done)
}

fn row(vnid: u32, masquerade_bit: u8, layout: Layout) -> Row {
    Row {
        vnid,
        hex: format!("{vnid:#x}"),
        mark: format!("{:#010x}", mark(vnid, masquerade_bit, layout)),
    }
}

fn line(vnid: &str, hex: &str, marks: &[&str]) -> String {
    let marks: Vec<String> = marks.iter().map(|mark| format!("{mark:<10}")).collect();
    format!("{vnid:<8}  {hex:<8}  {}", marks.join("  ")).trim_end().to_owned() + "\n"
}

/// A VNID, decimal or hex.
pub fn parse_vnid(text: &str) -> Result<u32, String> {
    let (digits, radix) = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None => (text, 10),
    };
    // The number's own parser takes "+1".
    let number = digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then_some(digits);
    let number = number.and_then(|digits| u32::from_str_radix(digits, radix).ok());
    number.filter(|&vnid| vnid <= MAX_VNID).ok_or_else(|| {
        format!("not a VNID: those are 24 bits wide, 0 to {MAX_VNID} or 0x0 to {MAX_VNID:#x}")
    })
}
