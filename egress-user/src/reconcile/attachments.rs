//! Which program runs on which interface: looked at, and mended.
use anyhow::Result;

use crate::bpf::{DataPlane, Hook};

/// A hook and the interface it is wanted on.
pub type Place = (Hook, String);

/// What became of one place.
#[derive(Debug)]
pub enum Outcome {
    Attached,
    Present,
    Failed(anyhow::Error),
}

/// Attaches what is not attached, in the order given. One broken interface does not stop the others.
pub fn reconcile(data_plane: &mut DataPlane, desired: &[Place]) -> Vec<(Place, Outcome)> {
    desired
        .iter()
        .map(|(hook, interface)| {
            let outcome = match attach(data_plane, *hook, interface) {
                Ok(outcome) => outcome,
                Err(error) => Outcome::Failed(error),
            };
            ((*hook, interface.clone()), outcome)
        })
        .collect()
}

fn attach(data_plane: &mut DataPlane, hook: Hook, interface: &str) -> Result<Outcome> {
    if data_plane.is_attached(hook, interface)? {
        return Ok(Outcome::Present);
    }
    data_plane.attach(hook, interface)?;
    Ok(Outcome::Attached)
}
