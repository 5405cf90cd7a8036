//! The case table, told to the engine itself.
use egress_common::testing::{Host, stories};

#[test]
fn every_story_holds_for_the_engine() {
    stories::tell(Host::default);
}
