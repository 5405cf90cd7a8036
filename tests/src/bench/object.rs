//! The benchmark's eBPF object: loading, attaching and its maps, each rig with its own copy.
use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, Pod, TestRun as _, TestRunAttrs, TestRunOptions,
    maps::{Array, MapData, PerCpuArray},
    programs::{SchedClassifier, TcAttachType, Xdp, XdpMode},
};
use egress_common::bench::{Capture, LATENCY_BUCKETS, Redirect, Shape, SinkRule, judged};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress-bench.o"));

/// What the sink has seen since the last `reset`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Arrived {
    pub accepted: u64,
    pub other: u64,
}

/// What the checker has made of all frames so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judged {
    pub original: u64,
    pub exchanged: u64,
    pub reply: u64,
    pub wrong: u64,
    pub other: u64,
}

/// One loaded copy of the object.
pub struct Object {
    ebpf: Ebpf,
}

impl Object {
    pub fn load() -> Result<Self> {
        ensure!(
            !OBJECT.is_empty(),
            "this build has no eBPF programs: run `cargo xtask setup`, then build again"
        );
        let ebpf = Ebpf::load(OBJECT).context("load the benchmark's eBPF object")?;
        Ok(Self { ebpf })
    }

    /// Loads the XDP program `name` without attaching it.
    pub fn xdp(&mut self, name: &str) -> Result<&mut Xdp> {
        let program = self.ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
        let program: &mut Xdp = program.try_into().with_context(|| format!("{name}: not XDP"))?;
        if program.fd().is_err() {
            program.load().with_context(|| format!("load program {name}"))?;
        }
        Ok(program)
    }

    /// Attaches an XDP program in native mode. Call it inside the interface's namespace.
    pub fn attach_xdp(&mut self, name: &str, interface: &str) -> Result<()> {
        self.xdp(name)?
            .attach(interface, XdpMode::Driver)
            .with_context(|| format!("attach {name} to {interface}"))
            .map(drop)
    }

    /// Attaches a tc program on ingress. Call it inside the interface's namespace.
    pub fn attach_tc(&mut self, name: &str, interface: &str) -> Result<()> {
        let program = self.ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
        let program: &mut SchedClassifier =
            program.try_into().with_context(|| format!("{name}: not tc"))?;
        if program.fd().is_err() {
            program.load().with_context(|| format!("load program {name}"))?;
        }
        program
            .attach(interface, TcAttachType::Ingress)
            .with_context(|| format!("attach {name} to {interface}"))
            .map(drop)
    }

    fn array<T: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, T>> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        Array::try_from(map).with_context(|| format!("map {name}"))
    }

    fn per_cpu(&mut self, name: &str) -> Result<PerCpuArray<&mut MapData, u64>> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        PerCpuArray::try_from(map).with_context(|| format!("map {name}"))
    }

    /// Writes the one value of a map; as bytes, because aya's own trait cannot be derived for it.
    fn put<const N: usize>(&mut self, name: &str, value: [u8; N]) -> Result<()> {
        self.array::<[u8; N]>(name)?.set(0, value, 0).with_context(|| format!("write map {name}"))
    }

    pub fn set_shape(&mut self, shape: Shape) -> Result<()> {
        self.put::<{ size_of::<Shape>() }>("SHAPE", bytemuck::cast(shape))
    }

    pub fn set_redirect(&mut self, redirect: Redirect) -> Result<()> {
        self.put::<{ size_of::<Redirect>() }>("REDIRECT", bytemuck::cast(redirect))
    }

    pub fn set_rule(&mut self, rule: SinkRule) -> Result<()> {
        self.put::<{ size_of::<SinkRule>() }>("RULE", bytemuck::cast(rule))
    }

    /// The number of the next packet.
    pub fn set_counter(&mut self, counter: u32) -> Result<()> {
        self.array("COUNTER")?.set(0, counter, 0).context("write map COUNTER")
    }

    pub fn counter(&mut self) -> Result<u32> {
        self.array("COUNTER")?.get(&0, 0).context("read map COUNTER")
    }

    /// Sets the sink's counters to zero; the next packet is due at once.
    pub fn reset(&mut self) -> Result<()> {
        let zero = vec![
            0u64;
            aya::util::nr_cpus().map_err(|(file, error)| {
                anyhow::Error::new(error).context(format!("read {file}"))
            })?
        ];
        for index in 0..2 {
            let values = zero.clone().try_into().context("a value for each CPU")?;
            self.per_cpu("ARRIVED")?.set(index, values, 0).context("write map ARRIVED")?;
        }
        self.array("CAPTURE_COUNT")?.set(0, 0u32, 0).context("write map CAPTURE_COUNT")?;
        self.array("DUE")?.set(0, 0u64, 0).context("write map DUE")?;
        for index in 0..LATENCY_BUCKETS {
            let values = zero.clone().try_into().context("a value for each CPU")?;
            self.per_cpu("LATENCY")?.set(index, values, 0).context("write map LATENCY")?;
        }
        Ok(())
    }

    pub fn arrived(&mut self) -> Result<Arrived> {
        let map = self.per_cpu("ARRIVED")?;
        let sum = |index| -> Result<u64> {
            Ok(map.get(&index, 0).context("read map ARRIVED")?.iter().sum())
        };
        Ok(Arrived { accepted: sum(0)?, other: sum(1)? })
    }

    pub fn judged(&mut self) -> Result<Judged> {
        let map = self.per_cpu("JUDGED")?;
        let sum = |index| -> Result<u64> {
            Ok(map.get(&index, 0).context("read map JUDGED")?.iter().sum())
        };
        Ok(Judged {
            original: sum(judged::ORIGINAL)?,
            exchanged: sum(judged::EXCHANGED)?,
            reply: sum(judged::REPLY)?,
            wrong: sum(judged::WRONG)?,
            other: sum(judged::OTHER)?,
        })
    }

    /// The latency histogram, in the buckets of `egress_common::bench::latency_bucket`.
    pub fn latency(&mut self) -> Result<Vec<u64>> {
        let map = self.per_cpu("LATENCY")?;
        (0..LATENCY_BUCKETS)
            .map(|index| Ok(map.get(&index, 0).context("read map LATENCY")?.iter().sum()))
            .collect()
    }

    /// The frames captured, each cut to the bytes that were kept, with its whole length.
    pub fn captures(&mut self) -> Result<Vec<Capture>> {
        let count: u32 = self.array("CAPTURE_COUNT")?.get(&0, 0).context("read CAPTURE_COUNT")?;
        let map = self.array::<[u8; size_of::<Capture>()]>("CAPTURED")?;
        (0..count)
            .map(|index| map.get(&index, 0).map(bytemuck::cast).context("read map CAPTURED"))
            .collect()
    }

    /// Sends `count` packets of `len` bytes from this thread, which must be in the sending
    /// interface's namespace. Returns when all have been handed to the interface.
    pub fn send(&mut self, generator: &str, len: usize, count: u32, batch: u32) -> Result<()> {
        let frame = vec![0u8; len];
        let options = TestRunOptions {
            data_in: Some(&frame),
            repeat: count,
            attrs: TestRunAttrs::new().xdp_live_frames(batch),
            ..TestRunOptions::default()
        };
        let program = self.xdp(generator)?;
        program.test_run(options).with_context(|| format!("run {generator}")).map(drop)
    }
}
