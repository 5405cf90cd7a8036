//! The benchmark of the data path: variants side by side, in network namespaces of their own.
//!
//! `rig` is one egress node and what surrounds it, `workload` says what is sent, `variants` who
//! carries it, `measure` does one run (`sockets` one of real TCP), `campaign` all of them, `report`
//! tells the outcome; `control` measures the control plane, `memory` a flow, `failover` how long a dead
//! node is missed, and `plan` says what each level of effort runs, by what `estimate` thinks it takes.
pub mod campaign;
pub mod conntrack;
pub mod control;
pub mod enclosure;
pub mod ends;
pub mod estimate;
pub mod failover;
pub mod frame;
pub mod machine;
pub mod measure;
pub mod memory;
pub mod net;
pub mod object;
pub mod pace;
pub mod plan;
pub mod progress;
pub mod report;
pub mod rig;
pub mod sockets;
pub mod stats;
pub mod variants;
pub mod workload;
