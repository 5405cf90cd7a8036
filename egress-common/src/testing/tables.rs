//! Tables in memory, with a clock, chance and a capacity that the test sets.
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::Hash,
};

use bytemuck::Zeroable;

use crate::{
    abi::{
        Claim, Config, FragmentKey, FragmentOwner, MacWords, OriginalFlow, OriginalKey, Place,
        ReplyFlow, ReplyKey, Slot, Usage, Wire, xdp_send,
    },
    crowd::Crowd,
    flow::Scratch,
    port::kind,
    tables::{InsertError, Step, Tables},
};

/// Entries are never freed: a reference stays good while a packet is treated, as in the kernel's
/// preallocated maps. (They are not reused either, which the kernel's are.)
type Table<K, V> = RefCell<HashMap<K, &'static V>>;

/// What another CPU does in the middle of a packet's treatment.
pub type Interruption = Box<dyn FnOnce(&MemoryTables)>;

/// The tables of one gateway.
pub struct MemoryTables {
    pub config: Option<Config>,
    pub policy: HashMap<u32, u32>,
    pub slots: Vec<Slot>,
    pub usage: Vec<Usage>,
    pub egress_ips: HashMap<[u8; 4], u32>,
    pub original: Table<OriginalKey, OriginalFlow>,
    pub reply: Table<ReplyKey, ReplyFlow>,
    pub fragments: RefCell<HashMap<FragmentKey, &'static FragmentOwner>>,
    pub crowds: RefCell<HashMap<ReplyKey, &'static Crowd>>,
    pub empty_crowds: Vec<Crowd>,
    /// How many flows tried so many ports.
    pub tries: RefCell<BTreeMap<u32, u64>>,
    pub places: Vec<Place>,
    pub claims: RefCell<HashSet<Claim>>,
    /// Most entries of the original's table.
    pub original_capacity: Cell<usize>,
    pub reply_capacity: Cell<usize>,
    pub now: Cell<u32>,
    pub heard: Cell<u32>,
    /// What `random` says next, before it goes on by itself.
    pub chance: RefCell<VecDeque<u32>>,
    pub seed: Cell<u32>,
    /// The next hop; `None`: the neighbour is not known.
    pub macs: Cell<Option<MacWords>>,
    /// By address: as the map of this name.
    pub pods: HashMap<[u8; 4], u32>,
    /// Remotes that the node has another way to than the uplink.
    pub elsewhere: HashSet<[u8; 4]>,
    /// Runs after the next insert of a reply entry.
    pub after_reply: RefCell<Option<Interruption>>,
    /// Runs before the next insert of a reply entry.
    pub before_reply: RefCell<Option<Interruption>>,
}

impl Default for MemoryTables {
    fn default() -> Self {
        Self {
            config: None,
            policy: HashMap::new(),
            slots: Vec::new(),
            usage: Vec::new(),
            egress_ips: HashMap::new(),
            original: Table::default(),
            reply: Table::default(),
            fragments: RefCell::default(),
            crowds: RefCell::default(),
            empty_crowds: vec![Crowd::default(); kind::COUNT as usize],
            tries: RefCell::default(),
            places: Vec::new(),
            claims: RefCell::default(),
            original_capacity: Cell::new(usize::MAX),
            reply_capacity: Cell::new(usize::MAX),
            heard: Cell::new(0),
            now: Cell::new(1_000_000),
            chance: RefCell::default(),
            seed: Cell::new(0x9e37_79b9),
            macs: Cell::new(Some([1, 2, 3])),
            pods: HashMap::new(),
            elsewhere: HashSet::new(),
            after_reply: RefCell::default(),
            before_reply: RefCell::default(),
        }
    }
}

impl MemoryTables {
    /// Enters a policy, in the slot after the last.
    pub fn add_policy(&mut self, vnid: u32, action: u8, egress_ip: [u8; 4]) {
        let index = self.slots.len() as u32;
        let wire = Wire { device: 2, send: xdp_send::BACK, ..Wire::default() };
        self.slots.push(Slot { vnid, action, egress_ip, uplink: 2, wire, ..Slot::zeroed() });
        self.usage.push(Usage::default());
        self.policy.insert(vnid, index);
        if egress_ip != [0; 4] {
            self.egress_ips.insert(egress_ip, index);
        }
    }

    fn insert<K: Copy + Eq + Hash, V>(
        &self,
        table: &Table<K, V>,
        capacity: usize,
        key: &K,
        value: V,
    ) -> Result<(), InsertError> {
        let mut table = table.borrow_mut();
        if table.contains_key(key) {
            return Err(InsertError::Taken);
        }
        if table.len() >= capacity {
            return Err(InsertError::Full);
        }
        table.insert(*key, Box::leak(Box::new(value)));
        Ok(())
    }

    fn interrupt(&self, interruption: &RefCell<Option<Interruption>>) {
        let interruption = interruption.borrow_mut().take();
        if let Some(interruption) = interruption {
            interruption(self);
        }
    }
}

impl Tables for MemoryTables {
    fn is_node(&self, _address: [u8; 4]) -> bool {
        true
    }

    fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    fn now(&self) -> u32 {
        self.now.get()
    }

    fn heard(&self) -> u32 {
        self.heard.get()
    }

    fn random(&self) -> u32 {
        if let Some(value) = self.chance.borrow_mut().pop_front() {
            return value;
        }
        // xorshift32
        let mut x = self.seed.get();
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        self.seed.set(x);
        x
    }

    fn policy(&self, vnid: u32) -> Option<&u32> {
        self.policy.get(&vnid)
    }

    fn slot(&self, index: u32) -> Option<&Slot> {
        self.slots.get(index as usize)
    }

    fn usage(&self, index: u32) -> Option<&Usage> {
        self.usage.get(index as usize)
    }

    fn egress_ip(&self, address: [u8; 4]) -> Option<&u32> {
        self.egress_ips.get(&address)
    }

    fn original(&self, key: &OriginalKey) -> Option<&OriginalFlow> {
        self.original.borrow().get(key).copied()
    }

    fn reply(&self, key: &ReplyKey) -> Option<&ReplyFlow> {
        self.reply.borrow().get(key).copied()
    }

    fn insert_original(&self, key: &OriginalKey, flow: &OriginalFlow) -> Result<(), InsertError> {
        self.insert(&self.original, self.original_capacity.get(), key, flow.clone())
    }

    fn insert_reply(&self, key: &ReplyKey, flow: &ReplyFlow) -> Result<(), InsertError> {
        self.interrupt(&self.before_reply);
        let result = self.insert(&self.reply, self.reply_capacity.get(), key, flow.clone());
        self.interrupt(&self.after_reply);
        result
    }

    fn claim(&self, claim: &Claim) -> bool {
        self.claims.borrow_mut().insert(*claim)
    }

    fn remove_original(&self, key: &OriginalKey) {
        self.original.borrow_mut().remove(key);
    }

    fn remove_reply(&self, key: &ReplyKey) {
        self.reply.borrow_mut().remove(key);
    }

    fn crowd(&self, destination: &ReplyKey) -> Option<&Crowd> {
        self.crowds.borrow().get(destination).copied()
    }

    fn add_crowd(&self, destination: &ReplyKey, crowd: &Crowd) {
        self.crowds.borrow_mut().insert(*destination, Box::leak(Box::new(crowd.clone())));
    }

    fn empty_crowd(&self, index: u32) -> Option<&Crowd> {
        self.empty_crowds.get(index as usize)
    }

    fn count_tries(&self, tries: u32) {
        *self.tries.borrow_mut().entry(tries).or_default() += 1;
    }

    fn place(&self, index: u32) -> Option<&Place> {
        self.places.get(index as usize)
    }

    fn repeat<S: Step<Self>>(&self, times: u32, scratch: &mut Scratch) {
        for _ in 0..times {
            if !S::step(self, scratch) {
                return;
            }
        }
    }

    fn fragment(&self, key: &FragmentKey) -> Option<&FragmentOwner> {
        self.fragments.borrow().get(key).copied()
    }

    fn remember_fragment(&self, key: &FragmentKey, owner: &FragmentOwner) {
        self.fragments.borrow_mut().insert(*key, Box::leak(Box::new(*owner)));
    }

    fn forget_fragment(&self, key: &FragmentKey) {
        self.fragments.borrow_mut().remove(key);
    }

    fn next_hop(&self, _: u32, _: [u8; 4], _: [u8; 4], macs: &mut MacWords) -> bool {
        match self.macs.get() {
            Some(known) => {
                *macs = known;
                true
            }
            None => false,
        }
    }

    fn routes_by(&self, _: u32, _: [u8; 4], remote: [u8; 4]) -> bool {
        !self.elsewhere.contains(&remote)
    }
}
