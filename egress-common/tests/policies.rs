//! Policies that go and come back while connections are open.
use bytemuck::Zeroable;
use egress_common::{
    abi::{Slot, action},
    reason::Reason,
    testing::{
        Gateway, Host, Outcome,
        gateway::{EGRESS_IP, POD, REMOTE, TENANT, tcp_mapping},
        packet::{Datagram, End, tcp},
    },
    wire::tcp::{ACK, SYN},
};

const CLIENT: End = (POD, 40001);
const MAPPED: End = (EGRESS_IP, 40001);
const SERVER: End = (REMOTE, 443);
const NEW_IP: [u8; 4] = [10, 0, 0, 42];

fn sent(packet: Datagram) -> Outcome {
    Outcome::Sent(packet.ttl(63).bytes())
}

fn open(host: &mut Host) {
    for flags in [SYN, ACK] {
        let found = host.leave_pod(TENANT, &tcp(CLIENT, SERVER, flags).bytes());
        assert_eq!(found, sent(tcp(MAPPED, SERVER, flags)));
        let found = host.arrive(&tcp(SERVER, MAPPED, flags | ACK).bytes());
        assert_eq!(found, sent(tcp(SERVER, CLIENT, flags | ACK)));
    }
}

/// The tenant's policy goes, and another takes its VNID, in a slot of its own.
fn replace_policy(host: &mut Host, egress_ip: [u8; 4]) {
    let tables = &mut host.tables;
    let index = tables.policy.remove(&TENANT).expect("the tenant has a policy");
    let old = std::mem::replace(&mut tables.slots[index as usize], Slot::zeroed());
    tables.egress_ips.remove(&old.egress_ip);
    tables.add_policy(TENANT, action::SNAT, egress_ip);
}

fn flows_counted(host: &Host) -> u32 {
    host.tables.usage[host.tables.policy[&TENANT] as usize].flows.get()
}

#[test]
fn a_policy_that_was_away_finds_its_connections_again() {
    let mut host = Host::default();
    open(&mut host);
    replace_policy(&mut host, EGRESS_IP);
    let early = host.arrive(&tcp(SERVER, MAPPED, ACK).bytes());
    assert_eq!(early, Outcome::Dropped(Reason::PolicyGone), "nothing says yet whose it is");
    let found = host.leave_pod(TENANT, &tcp(CLIENT, SERVER, ACK).bytes());
    assert_eq!(found, sent(tcp(MAPPED, SERVER, ACK)));
    let found = host.arrive(&tcp(SERVER, MAPPED, ACK).bytes());
    assert_eq!(found, sent(tcp(SERVER, CLIENT, ACK)));
    assert_eq!(host.mappings(), [tcp_mapping(TENANT, CLIENT, SERVER, MAPPED)]);
    assert_eq!(flows_counted(&host), 1);
}

#[test]
fn who_gets_a_used_vnid_gets_neither_its_connections_nor_its_address() {
    let mut host = Host::default();
    open(&mut host);
    replace_policy(&mut host, NEW_IP);
    // Nobody's address any more: the stack's affair.
    assert_eq!(
        host.arrive(&tcp(SERVER, MAPPED, ACK).bytes()),
        Outcome::Dropped(Reason::PolicyGone)
    );
    let fresh = (NEW_IP, CLIENT.1);
    let found = host.leave_pod(TENANT, &tcp(CLIENT, SERVER, SYN).bytes());
    assert_eq!(found, sent(tcp(fresh, SERVER, SYN)), "with the same pod, port and remote");
    assert_eq!(host.mappings(), [tcp_mapping(TENANT, CLIENT, SERVER, fresh)]);
    assert_eq!(flows_counted(&host), 1);
    assert_eq!(host.arrive(&tcp(SERVER, MAPPED, ACK).bytes()), Outcome::Passed);
}
