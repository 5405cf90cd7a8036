//! The data paths that a story is told on: how the rig is made ready for each, and a test of each.

use anyhow::Result;

use super::{Rig, topology::Pod, whole_frames};
use crate::{gateway::Gateway, netns::Netns};

/// Where the agent translates.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DataPath {
    Tc,
    /// VXLAN by the kernel's device.
    Tunnel,
    /// Behind the node's own forwarding.
    Stack,
    /// With whole frames, as a wire carries them.
    Xdp,
    /// With frames of a stack on this machine, which has left their checksums for later.
    XdpUnfinished,
}

impl DataPath {
    /// A rig whose frames are what this path takes.
    pub fn rig(self) -> Result<Rig> {
        let rig = Rig::up()?;
        if matches!(self, Self::Xdp | Self::XdpUnfinished) {
            rig.take_xdp_frames()?;
        }
        if self == Self::Xdp {
            rig.send_whole_frames()?;
        }
        Ok(rig)
    }

    /// The counters of `egress status` that its packets show up in: out and back. Of unfinished frames
    /// those that XDP leaves.
    #[must_use]
    pub fn counters(self) -> [&'static str; 2] {
        match self {
            Self::Tc | Self::XdpUnfinished => ["underlay", "reply_underlay"],
            Self::Tunnel => ["tunnel", "reply_tunnel"],
            Self::Stack => ["stack", "reply_stack"],
            Self::Xdp => ["xdp", "reply_xdp"],
        }
    }

    /// As [`Rig::start_pod`], with frames that this path takes.
    pub fn start_pod(self, rig: &Rig, pod: &Pod) -> Result<Netns> {
        let netns = rig.start_pod(pod)?;
        if self == Self::Xdp {
            whole_frames(&netns)?;
        }
        Ok(netns)
    }

    /// The agent on the rig's egress node, ready, with this path in force.
    pub fn gateway(self, rig: &Rig) -> Result<Gateway<'_>> {
        Gateway::start_on(
            rig,
            match self {
                Self::Tc => "tc",
                Self::Tunnel => "tunnel",
                Self::Stack => "stack",
                Self::Xdp | Self::XdpUnfinished => "xdp",
            },
        )
    }
}

/// Makes a test of each story, a function of a [`DataPath`], on each data path.
#[macro_export]
macro_rules! on_every_data_path {
    ($($story:ident)*) => {
        $crate::on_data_paths! {
            tc Tc, tunnel Tunnel, stack Stack, xdp Xdp, xdp_unfinished XdpUnfinished:
            { $($story)* }
        }
    };
}

/// As [`on_every_data_path`], on some: each is named with the module of its tests.
#[macro_export]
macro_rules! on_data_paths {
    ($($module:ident $path:ident),+: $stories:tt) => {
        $($crate::on_data_paths! { @one $module $path $stories })+
    };
    (@one $module:ident $path:ident { $($story:ident)* }) => {
        mod $module {
            $(#[test]
            #[ignore = "needs root"]
            fn $story() -> anyhow::Result<()> {
                super::$story($crate::rig::DataPath::$path)
            })*
        }
    };
}
