//! What a fuzzer has found worth keeping, replayed: inputs that together reach all it has reached, and
//! those that once failed (docs/fuzzing.md).
use std::{fs, path::Path};

use egress_common::testing::events::replay;

#[test]
fn the_fuzzers_inputs_hold() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/kept");
    let inputs = fs::read_dir(&corpus).expect("the inputs are there");
    let mut replayed = 0;
    for input in inputs {
        let path = input.expect("an input").path();
        println!("{}", path.display());
        replay(&fs::read(&path).expect("read an input"));
        replayed += 1;
    }
    assert!(replayed >= 50, "{replayed} inputs");
}
