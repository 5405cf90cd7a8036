//! The maps, and the engine's view of them.
//!
//! Every map is pinned by name; the agent sizes the big ones before loading. Entries of
//! preallocated hash maps are reused at once after a delete: a held pointer stays readable but may
//! have become another flow, which is why the engine compares what it reads with the slot.
use aya_ebpf::{
    bindings::{
        BPF_ANY, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LOOKUP_OUTPUT,
        BPF_NOEXIST, bpf_fib_lookup,
    },
    helpers::generated as kernel,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
};
use core::{cell::Cell, ffi::c_void};
use egress_common::{
    abi::{
        Arrival, Claim, Config, FragmentKey, FragmentOwner, Kept, MARKED_ONLY, MacWords, NodeHop,
        OriginalFlow, OriginalKey, Path, Place, ReplyFlow, ReplyKey, Slot, SlotCounters,
        TICK_SHIFT, Usage,
    },
    crowd::Crowd,
    flow::Scratch,
    fragment::ALL_PLACES,
    lease::TRIES,
    port::kind,
    reason::{REASON_COUNT, Reason},
    tables::{InsertError, Step, Tables},
};

use crate::log;

/// A value that every CPU may change at any time: plain loads and stores, as the kernel's maps are.
#[repr(transparent)]
struct Shared<T>(T);

// SAFETY: what changes in a value is in cells of one machine word, read and written at once.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    #[inline(always)]
    fn from_ref(value: &T) -> &Self {
        // SAFETY: transparent: the same layout.
        unsafe { &*core::ptr::from_ref(value).cast() }
    }
}

/// Sizes here are the smallest that are of use; the agent sets the real ones.
const FLOWS: u32 = 65536;
const SLOTS: u32 = 16384;

#[map(name = "config")]
static CONFIG: Array<Config> = Array::pinned(1, 0);
#[map(name = "nodes")]
static NODES: HashMap<[u8; 4], NodeHop> = HashMap::pinned(16384, 0);
/// Pod address to VNID, for pods whose packets arrive without a mark; with [`MARKED_ONLY`] for those
/// whose packets never should.
#[map(name = "pods")]
static PODS: HashMap<[u8; 4], u32> = HashMap::pinned(16384, 0);
#[map(name = "policy")]
static POLICY: HashMap<u32, u32> = HashMap::pinned(SLOTS, 0);
#[map(name = "slots")]
static SLOT: Array<Slot> = Array::pinned(SLOTS, 0);
#[map(name = "egress_ips")]
static EGRESS_IPS: HashMap<[u8; 4], u32> = HashMap::pinned(SLOTS, 0);
/// On XDP: what comes from here comes by a further uplink, and its answers may be sent.
#[map(name = "arrivals")]
static ARRIVALS: HashMap<Arrival, u32> = HashMap::pinned(256, 0);
#[map(name = "flows_original")]
static FLOWS_ORIGINAL: HashMap<OriginalKey, Shared<OriginalFlow>> = HashMap::pinned(FLOWS, 0);
#[map(name = "flows_reply")]
static FLOWS_REPLY: HashMap<ReplyKey, Shared<ReplyFlow>> = HashMap::pinned(FLOWS, 0);
#[map(name = "fragments")]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentOwner> = LruHashMap::pinned(8192, 0);
/// Fragments from outside that wait for the first of their packet, by place.
#[map(name = "kept")]
static KEPT: HashMap<u32, Shared<Kept>> = HashMap::pinned(ALL_PLACES, 0);
/// Room for a frame, since the programs' stack is too small for one.
#[map(name = "kept_room")]
static KEPT_ROOM: PerCpuArray<Shared<Kept>> = PerCpuArray::pinned(1, 0);
/// The destinations that ports are getting scarce towards; 8.3 KiB each.
#[map(name = "crowds")]
static CROWDS: LruHashMap<ReplyKey, Shared<Crowd>> = LruHashMap::pinned(512, 0);
/// What a new element of `crowds` is copied from.
#[map(name = "empty_crowds")]
static EMPTY_CROWDS: Array<Shared<Crowd>> = Array::pinned(kind::COUNT, 0);
/// How many new flows tried so many ports.
#[map(name = "tries")]
static TRIED: PerCpuArray<u64> = PerCpuArray::pinned(TRIES + 1, 0);
#[map(name = "places")]
static PLACES: Array<Shared<Place>> = Array::pinned(2 * FLOWS, 0);
/// Expired flows whose removal has begun.
#[map(name = "claims")]
static CLAIMS: LruHashMap<Claim, u32> = LruHashMap::pinned(4096, 0);
#[map(name = "reasons")]
static REASONS: PerCpuArray<u64> = PerCpuArray::pinned(REASON_COUNT, 0);
#[map(name = "paths")]
static PATHS: PerCpuArray<u64> = PerCpuArray::pinned(Path::ALL.len() as u32, 0);
#[map(name = "slot_counters")]
static SLOT_COUNTERS: PerCpuArray<SlotCounters> = PerCpuArray::pinned(SLOTS, 0);
#[map(name = "usage")]
static USAGE: Array<Shared<Usage>> = Array::pinned(SLOTS, 0);
#[map(name = "scratch")]
static SCRATCH: PerCpuArray<Shared<Scratch>> = PerCpuArray::pinned(1, 0);
/// Room to ask the FIB in.
#[map(name = "fib")]
static FIB: PerCpuArray<bpf_fib_lookup> = PerCpuArray::pinned(1, 0);

/// When another node was last heard, in ticks; 0: never yet.
#[map(name = "heard")]
static HEARD: Array<Shared<Cell<u32>>> = Array::pinned(1, 0);

/// The coarse monotonic clock.
#[inline(always)]
pub fn coarse_ns() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { kernel::bpf_ktime_get_coarse_ns() }
}

/// In ticks (see `abi`).
#[inline(always)]
fn now() -> u32 {
    (coarse_ns() >> TICK_SHIFT) as u32
}

/// The kernel's tables, as seen from one packet.
#[derive(Clone, Copy)]
pub struct Maps {
    /// The program's context: the FIB is asked on its behalf.
    pub context: *mut c_void,
}

/// What a turn of the kernel's loop works on.
struct Turn {
    maps: Maps,
    scratch: *mut Scratch,
}

/// The kernel's loop stops at 1.
unsafe extern "C" fn turn_once<S: Step<Maps>>(_: u64, turn: *mut Turn) -> i64 {
    // SAFETY: `repeat` hands in a turn of its own, with a scratch that is its caller's alone.
    let (maps, scratch) = unsafe { ((*turn).maps, &mut *(*turn).scratch) };
    i64::from(!S::step(&maps, scratch))
}

const AF_INET: u8 = 2;
const EEXIST: i32 = -17;

#[inline(always)]
fn inserted(result: Result<(), i32>) -> Result<(), InsertError> {
    match result {
        Ok(()) => Ok(()),
        Err(EEXIST) => Err(InsertError::Taken),
        Err(_) => Err(InsertError::Full),
    }
}

impl Tables for Maps {
    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        CONFIG.get(0)
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        now()
    }

    #[inline(always)]
    fn heard(&self) -> u32 {
        HEARD.get(0).map_or(0, |heard| heard.0.get())
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { kernel::bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn policy(&self, vnid: u32) -> Option<&u32> {
        // SAFETY: the value is one word, read at once.
        unsafe { POLICY.get(vnid) }
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<&Slot> {
        SLOT.get(index)
    }

    #[inline(always)]
    fn usage(&self, index: u32) -> Option<&Usage> {
        USAGE.get(index).map(|shared| &shared.0)
    }

    #[inline(always)]
    fn egress_ip(&self, address: [u8; 4]) -> Option<&u32> {
        // SAFETY: the value is one word, read at once.
        unsafe { EGRESS_IPS.get(address) }
    }

    #[inline(always)]
    fn is_node(&self, address: [u8; 4]) -> bool {
        is_node(address)
    }

    #[inline(always)]
    fn original(&self, key: &OriginalKey) -> Option<&OriginalFlow> {
        // SAFETY: shared fields are single words; reuse is the engine's to notice (module header).
        unsafe { FLOWS_ORIGINAL.get(key) }.map(|shared| &shared.0)
    }

    #[inline(always)]
    fn reply(&self, key: &ReplyKey) -> Option<&ReplyFlow> {
        // SAFETY: as above.
        unsafe { FLOWS_REPLY.get(key) }.map(|shared| &shared.0)
    }

    #[inline(always)]
    fn insert_original(&self, key: &OriginalKey, flow: &OriginalFlow) -> Result<(), InsertError> {
        inserted(FLOWS_ORIGINAL.insert(key, Shared::from_ref(flow), u64::from(BPF_NOEXIST)))
    }

    #[inline(always)]
    fn insert_reply(&self, key: &ReplyKey, flow: &ReplyFlow) -> Result<(), InsertError> {
        inserted(FLOWS_REPLY.insert(key, Shared::from_ref(flow), u64::from(BPF_NOEXIST)))
    }

    #[inline(always)]
    fn claim(&self, claim: &Claim) -> bool {
        CLAIMS.insert(claim, 0, u64::from(BPF_NOEXIST)).is_ok()
    }

    #[inline(always)]
    fn remove_original(&self, key: &OriginalKey) {
        // Gone already is as good.
        let _ = FLOWS_ORIGINAL.remove(key);
    }

    #[inline(always)]
    fn remove_reply(&self, key: &ReplyKey) {
        // Gone already is as good.
        let _ = FLOWS_REPLY.remove(key);
    }

    #[inline(always)]
    fn crowd(&self, destination: &ReplyKey) -> Option<&Crowd> {
        // SAFETY: its words are single ones, and no more than a hint.
        unsafe { CROWDS.get(destination) }.map(|shared| &shared.0)
    }

    #[inline(always)]
    fn add_crowd(&self, destination: &ReplyKey, crowd: &Crowd) {
        // Somebody else's is as good; without one the walk goes on.
        let _ = CROWDS.insert(destination, Shared::from_ref(crowd), u64::from(BPF_NOEXIST));
    }

    #[inline(always)]
    fn empty_crowd(&self, index: u32) -> Option<&Crowd> {
        EMPTY_CROWDS.get(index).map(|shared| &shared.0)
    }

    #[inline(always)]
    fn count_tries(&self, tries: u32) {
        if let Some(counter) = TRIED.get_ptr_mut(tries) {
            // SAFETY: this CPU's own element.
            unsafe { *counter += 1 };
        }
    }

    #[inline(always)]
    fn place(&self, index: u32) -> Option<&Place> {
        PLACES.get(index).map(|shared| &shared.0)
    }

    #[inline(always)]
    fn repeat<S: Step<Self>>(&self, times: u32, scratch: &mut Scratch) {
        let mut turn = Turn { maps: *self, scratch };
        let step = turn_once::<S> as unsafe extern "C" fn(u64, *mut Turn) -> i64;
        // SAFETY: the callback gets `turn`, which outlives the call.
        unsafe {
            kernel::bpf_loop(times, step as *mut c_void, (&raw mut turn).cast(), 0);
        }
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<&FragmentOwner> {
        // SAFETY: a torn read is of two packets with one key, and its flow is looked up and judged.
        unsafe { FRAGMENTS.get(key) }
    }

    #[inline(always)]
    fn remember_fragment(&self, key: &FragmentKey, owner: &FragmentOwner) {
        // Full does not happen in an LRU map; the fragments behind would be dropped and counted.
        let _ = FRAGMENTS.insert(key, owner, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn forget_fragment(&self, key: &FragmentKey) {
        // Gone already is as good.
        let _ = FRAGMENTS.remove(key);
    }

    #[inline(always)]
    fn next_hop(&self, uplink: u32, source: [u8; 4], remote: [u8; 4], macs: &mut MacWords) -> bool {
        let Some((result, lookup)) = self.look_up(uplink, source, remote, BPF_FIB_LOOKUP_OUTPUT)
        else {
            return false;
        };
        if result != 0 || lookup.ifindex != uplink {
            return false;
        }
        let ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]) = (lookup.dmac, lookup.smac);
        *macs = mac_words([d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5]);
        true
    }

    /// As if the packet had come in by the uplink: with that device as its output, the kernel would
    /// look at no other way. A function of its own for the sake of the stack.
    #[inline(never)]
    fn routes_by(&self, uplink: u32, pod: [u8; 4], remote: [u8; 4]) -> bool {
        let Some((result, lookup)) = self.look_up(uplink, pod, remote, 0) else { return false };
        match result as u32 {
            0 | BPF_FIB_LKUP_RET_NO_NEIGH => lookup.ifindex == uplink,
            // A node that forwards nothing has no other way.
            code => code == BPF_FIB_LKUP_RET_FWD_DISABLED,
        }
    }
}

impl Maps {
    /// Asks the FIB from or, as `flags` say, towards `interface`: what it answers, in which room.
    #[inline(always)]
    fn look_up(
        &self,
        interface: u32,
        source: [u8; 4],
        remote: [u8; 4],
        flags: u32,
    ) -> Option<(i64, &'static bpf_fib_lookup)> {
        let lookup = FIB.get_ptr_mut(0)?;
        // SAFETY: this CPU's own element; all-zero is a valid value of this plain struct.
        let lookup = unsafe {
            *lookup = core::mem::zeroed();
            &mut *lookup
        };
        lookup.family = AF_INET;
        lookup.ifindex = interface;
        // tot_len stays 0: no MTU check here, and none at all for GSO packets.
        lookup.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(source);
        lookup.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(remote);
        // SAFETY: the context is the program's own, the struct has its size.
        let result = unsafe {
            kernel::bpf_fib_lookup(self.context, lookup, size_of::<bpf_fib_lookup>() as i32, flags)
        };
        Some((result, lookup))
    }
}

/// This CPU's room to make a flow in. Programs run with bottom halves disabled: no other one comes
/// between on this CPU.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: this CPU's own element, and one program holds it at a time.
    SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut (*scratch).0 })
}

/// This CPU's room for a frame. As with [`scratch`], one program holds it at a time.
#[inline(always)]
pub fn kept_room() -> Option<&'static mut Kept> {
    // SAFETY: this CPU's own element.
    KEPT_ROOM.get_ptr_mut(0).map(|room| unsafe { &mut (*room).0 })
}

/// What is kept in a place. Written once, before it is entered; a reused element is told by whether
/// it can still be removed.
#[inline(always)]
pub fn kept(place: u32) -> Option<&'static Kept> {
    // SAFETY: as above: plain bytes, and who reads them asks afterwards whose they were.
    unsafe { KEPT.get(place) }.map(|kept| &kept.0)
}

/// Keeps a frame in a place, if there is nothing in it.
#[inline(always)]
pub fn keep(place: u32, frame: &Kept) -> bool {
    KEPT.insert(place, Shared::from_ref(frame), u64::from(BPF_NOEXIST)).is_ok()
}

/// Empties a place. Of several CPUs one has emptied it.
#[inline(always)]
pub fn let_go(place: u32) -> bool {
    KEPT.remove(place).is_ok()
}

/// A link-layer header's addresses.
#[inline(always)]
pub fn mac_words(header: [u8; 12]) -> MacWords {
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = header;
    [[d0, d1, d2, d3], [d4, d5, s0, s1], [s2, s3, s4, s5]].map(u32::from_ne_bytes)
}

/// Whether nothing is to be changed. Settings that are not there change things.
#[inline(always)]
pub fn is_shadow() -> bool {
    CONFIG.get(0).is_some_and(Config::is_shadow)
}

#[inline(always)]
pub fn is_node(address: [u8; 4]) -> bool {
    let known = NODES.get_ptr(address).is_some();
    if !known {
        log::unknown_node(u32::from_be_bytes(address));
    }
    known
}

/// The cached next hop of a known node.
#[inline(always)]
pub fn node_hop(node: [u8; 4]) -> Option<&'static mut NodeHop> {
    // SAFETY: words that CPUs may write at once; a mixture is one frame to a wrong address.
    NODES.get_ptr_mut(node).map(|hop| unsafe { &mut *hop })
}

/// Whether what comes from there comes by a further uplink that XDP serves.
#[inline(always)]
pub fn comes_by_uplink(arrival: Arrival) -> bool {
    ARRIVALS.get_ptr(arrival).is_some()
}

/// What is known of the pod at an address.
#[inline(always)]
pub fn pod(address: [u8; 4]) -> Option<u32> {
    // SAFETY: the value is one word, read at once.
    unsafe { PODS.get(address) }.copied()
}

#[inline(always)]
pub fn vnid_of_pod(address: [u8; 4]) -> Option<u32> {
    pod(address).filter(|value| value & MARKED_ONLY == 0)
}

#[inline(always)]
pub fn count_reason(reason: Reason) {
    if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own element.
        unsafe { *counter += 1 };
    }
}

#[inline(always)]
pub fn count_path(path: Path) {
    if let Some(counter) = PATHS.get_ptr_mut(path as u32) {
        // SAFETY: this CPU's own element.
        unsafe { *counter += 1 };
    }
}

/// This CPU's counters of a slot.
#[inline(always)]
pub fn slot_counters(slot: u32) -> Option<&'static mut SlotCounters> {
    // SAFETY: this CPU's own element, and no other reference to it lives meanwhile.
    SLOT_COUNTERS.get_ptr_mut(slot).map(|counters| unsafe { &mut *counters })
}

/// Another node has a way to this one.
#[inline(always)]
pub fn hear() {
    let Some(heard) = HEARD.get(0) else { return };
    // 0 stands for never. Written once a tick: the word is shared by all CPUs.
    let now = now().max(1);
    if heard.0.get() != now {
        heard.0.set(now);
    }
}

/// A tenant's packet has come from another node: as good as a question.
#[inline(always)]
pub fn hear_tunnel(config: &Config, node: [u8; 4]) {
    if config.lease != 0 && NODES.get_ptr(node).is_some() {
        hear();
    }
}

/// A dropped packet of the tenant in this slot, if it is one's.
#[inline(always)]
pub fn count_dropped(slot: u32) {
    if let Some(counters) = slot_counters(slot) {
        counters.dropped += 1;
    }
}
