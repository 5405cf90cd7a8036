//! How much stack the programs take, counted as the kernel counts it (`check_max_stack_depth` in
//! kernel/bpf/verifier.c): the frames of a chain of calls together, each rounded up to 16 bytes.
//!
//! The kernel refuses more than 512. A program that comes near is one change away from an agent
//! that does not start, hence a bound of our own.
use std::collections::HashMap;

use anyhow::{Context as _, Result};
use aya_obj::generated::{BPF_PSEUDO_CALL, BPF_PSEUDO_FUNC, bpf_insn};

use super::OBJECT;

/// Bytes that no chain of calls may exceed.
const BOUND: u32 = 464;

const FRAME_POINTER: u8 = 10;
/// Instructions, by their first byte (RFC 9669, section 4.1 and 5.2).
const CALL: u8 = 0x85;
const LOAD_WIDE: u8 = 0x18;
const MOVE: u8 = 0xbf;
const ADD_NUMBER: u8 = 0x07;
const CLASS: u8 = 0x07;
const CLASS_LOAD: u8 = 0x01;
const CLASS_STORES: [u8; 2] = [0x02, 0x03];

/// A program's functions one behind the other, each by its first instruction.
struct Stack<'a> {
    program: &'a [bpf_insn],
    depths: HashMap<usize, u32>,
}

impl Stack<'_> {
    /// The bytes that the function at `start` takes, with what it calls.
    fn depth(&mut self, start: usize) -> u32 {
        if let Some(&depth) = self.depths.get(&start) {
            return depth;
        }
        let end = starts(self.program).into_iter().find(|next| *next > start);
        let function = start..end.unwrap_or(self.program.len());
        let own = frame(&self.program[function.clone()]).max(1).next_multiple_of(16);
        let deepest = function.filter_map(|at| callee(self.program, at)).map(|to| self.depth(to));
        let depth = own + deepest.collect::<Vec<_>>().into_iter().max().unwrap_or(0);
        self.depths.insert(start, depth);
        depth
    }
}

/// Where functions begin, sorted.
fn starts(program: &[bpf_insn]) -> Vec<usize> {
    let mut starts: Vec<_> = (0..program.len()).filter_map(|at| callee(program, at)).collect();
    starts.sort_unstable();
    starts.dedup();
    starts
}

/// The function that is called at `at`, or handed to the kernel to be called.
fn callee(program: &[bpf_insn], at: usize) -> Option<usize> {
    let instruction = &program[at];
    let source = u32::from(instruction.src_reg());
    let names_one = match instruction.code {
        CALL => source == BPF_PSEUDO_CALL,
        LOAD_WIDE => source == BPF_PSEUDO_FUNC,
        _ => false,
    };
    let to = at as i64 + i64::from(instruction.imm) + 1;
    names_one.then_some(usize::try_from(to).ok()?)
}

/// The bytes below the frame pointer that a function reaches.
fn frame(function: &[bpf_insn]) -> u32 {
    let reached = function.iter().enumerate().filter_map(|(at, instruction)| {
        let class = instruction.code & CLASS;
        let is_load = class == CLASS_LOAD && instruction.src_reg() == FRAME_POINTER;
        let is_store = CLASS_STORES.contains(&class) && instruction.dst_reg() == FRAME_POINTER;
        if is_load || is_store {
            return Some(i32::from(instruction.off));
        }
        let is_copy = instruction.code == MOVE && instruction.src_reg() == FRAME_POINTER;
        let copy = instruction.dst_reg();
        let moved = |next: &&bpf_insn| next.code == ADD_NUMBER && next.dst_reg() == copy;
        let moved = function[at + 1..].iter().take(8).find(moved);
        moved.filter(|_| is_copy).map(|next| next.imm)
    });
    reached.min().map_or(0, |lowest| lowest.min(0).unsigned_abs())
}

/// What each program takes.
fn depths(object: &[u8]) -> Result<Vec<(String, u32)>> {
    let mut object = aya_obj::Object::parse(object).context("parse the eBPF object")?;
    let texts = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&texts).context("link the programs' functions")?;
    let of = |(name, program): (&String, &aya_obj::Program)| {
        let function = object.functions.get(&program.function_key()).context("a program's code")?;
        let mut stack = Stack { program: &function.instructions, depths: HashMap::new() };
        Ok((name.clone(), stack.depth(0)))
    };
    object.programs.iter().map(of).collect()
}

#[test]
fn no_chain_of_calls_comes_near_the_end_of_the_stack() -> Result<()> {
    if OBJECT.is_empty() {
        println!("not run: built without a BPF toolchain");
        return Ok(());
    }
    let depths = depths(OBJECT)?;
    assert!(!depths.is_empty(), "the object has no programs");
    for (name, depth) in &depths {
        println!("{name}: {depth} bytes of stack");
    }
    let too_deep: Vec<_> = depths.iter().filter(|(_, depth)| *depth > BOUND).collect();
    assert!(too_deep.is_empty(), "more than {BOUND} bytes of stack: {too_deep:?}");
    Ok(())
}
