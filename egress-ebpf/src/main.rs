//! Entry points of the eBPF programs. What they do is in `hooks` and `underlay`, how
//! in `tc`, with what in `maps`; `xdp` is the hot path once more, earlier.
#![no_std]
#![no_main]

mod fence;
mod hooks;
mod kept;
mod log;
mod maps;
mod probe;
mod source;
mod tc;
mod underlay;
mod vxlan;
mod xdp;

use aya_ebpf::{
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};

#[classifier]
pub fn tunnel_ingress(context: TcContext) -> i32 {
    source::tunnel_ingress(&context);
    hooks::tunnel_ingress(&context)
}

#[classifier]
pub fn gateway_ingress(context: TcContext) -> i32 {
    hooks::gateway_ingress(&context)
}

#[classifier]
pub fn pod_ingress(context: TcContext) -> i32 {
    source::pod_ingress(&context)
}

#[classifier]
pub fn uplink_ingress(context: TcContext) -> i32 {
    hooks::uplink_ingress(&context)
}

#[classifier]
pub fn uplink_egress(context: TcContext) -> i32 {
    hooks::uplink_egress(&context)
}

#[xdp]
pub fn uplink_xdp(context: XdpContext) -> u32 {
    xdp::uplink(&context)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

// The kernel offers the helpers marked GPL-only to programs under this licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
