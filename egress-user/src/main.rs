//! The `egress` command.
fn main() -> anyhow::Result<()> {
    Ok(())
}
