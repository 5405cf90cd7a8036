//! The kernel's addresses, as the agent sees, changes and watches them.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use egress_tests::netns::Netns;
use egress_user::{
    identity::{NodeSettings, Unidentified, identify},
    netlink::{
        Added, Address, Link, Netlink,
        subscription::{Changes, Subscription},
    },
    reconcile::addresses::{EgressAddress, Outcome, label_of, missing, reconcile},
};

const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 13);
const DEADLINE: Duration = Duration::from_secs(10);

/// A node of the origin notes: 10.0.0.2/24 on `uplink`, with a default route.
fn node(uplink: &str) -> Result<Netns> {
    let netns = Netns::alone("addr")?;
    netns.exec(&format!("ip link add name {uplink} type veth peer name far"))?;
    netns.exec("ip link set dev far up")?;
    netns.exec(&format!("ip link set dev {uplink} up"))?;
    netns.exec(&format!("ip addr add 10.0.0.2/24 dev {uplink}"))?;
    netns.exec("ip route add default via 10.0.0.1")?;
    // Later notifications of the link would fall into the tests.
    netns.wait_up(uplink)?;
    netns.wait_up("far")?;
    Ok(netns)
}

fn egress(ip: Ipv4Addr, link: &str) -> EgressAddress {
    EgressAddress { ip, prefix_len: 24, label: Some(label_of(link)) }
}

/// What a reconciler run did, by address, in words; and the record afterwards.
#[derive(Debug, PartialEq, Eq)]
struct Done {
    outcomes: BTreeMap<Ipv4Addr, String>,
    owned: BTreeSet<Ipv4Addr>,
}

fn apply(
    netns: &Netns,
    uplink: &str,
    desired: &[EgressAddress],
    owned: &[Ipv4Addr],
) -> Result<Done> {
    netns.block_on(|| async {
        let netlink = Netlink::open()?;
        let link = netlink.link_by_name(uplink).await?.context("the uplink is missing")?;
        let desired = desired.iter().cloned().collect();
        let mut owned = owned.iter().copied().collect();
        let outcomes = reconcile(&netlink, &link, NODE, &desired, &mut owned).await?;
        let in_words = |outcome| match outcome {
            Outcome::Failed(error) => format!("Failed: {error:#}"),
            other => format!("{other:?}"),
        };
        let outcomes = outcomes.into_iter().map(|(ip, what)| (ip, in_words(what))).collect();
        Ok(Done { outcomes, owned })
    })
}

fn done(outcomes: &[(Ipv4Addr, &str)], owned: &[Ipv4Addr]) -> Done {
    Done {
        outcomes: outcomes.iter().map(|(ip, what)| (*ip, (*what).to_owned())).collect(),
        owned: owned.iter().copied().collect(),
    }
}

/// "IP/LENGTH LABEL" of all IPv4 addresses of a link, sorted, as iproute2 sees them.
fn on_link(netns: &Netns, uplink: &str) -> Result<Vec<String>> {
    let printed = netns.exec(&format!("ip -4 -o addr show dev {uplink}"))?;
    let mut addresses = Vec::new();
    for line in printed.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let label = words.iter().position(|word| *word == "valid_lft").context("no lifetime")?;
        addresses.push(format!("{} {}", words[3], words[label - 1].trim_end_matches('\\')));
    }
    addresses.sort();
    Ok(addresses)
}

#[test]
#[ignore = "needs root"]
fn addresses_are_added_with_prefix_and_label_and_a_second_run_changes_nothing() -> Result<()> {
    let netns = node("ens18")?;
    let desired = [egress(FIRST, "ens18"), egress(SECOND, "ens18")];
    let first = apply(&netns, "ens18", &desired, &[])?;
    assert_eq!(first, done(&[(FIRST, "Added"), (SECOND, "Added")], &[]));
    let expected = ["10.0.0.11/24 ens18:eip", "10.0.0.13/24 ens18:eip", "10.0.0.2/24 ens18"];
    assert_eq!(on_link(&netns, "ens18")?, expected);

    let changed = netns.block_on(|| async {
        let mut events = Subscription::open()?;
        let netlink = Netlink::open()?;
        let link = netlink.link_by_name("ens18").await?.context("the uplink is missing")?;
        let desired = desired.iter().cloned().collect();
        let outcomes = reconcile(&netlink, &link, NODE, &desired, &mut BTreeSet::new()).await?;
        ensure!(outcomes.values().all(|outcome| matches!(outcome, Outcome::Present)));
        // A mark behind it: had the second run changed an address, that would be told with it.
        netlink_mark(&netns)?;
        Ok(tokio::time::timeout(DEADLINE, events.next()).await?)
    })?;
    let only_the_mark = Changes { links: true, ..Changes::default() };
    assert_eq!(changed, only_the_mark);
    assert_eq!(on_link(&netns, "ens18")?, expected);
    Ok(())
}

/// A change of a link, and of nothing else.
fn netlink_mark(netns: &Netns) -> Result<String> {
    netns.exec("ip link set dev far alias mark")
}

#[test]
#[ignore = "needs root"]
fn stale_addresses_of_ours_go_and_an_admins_address_stays() -> Result<()> {
    let netns = node("ens18")?;
    netns.exec("ip addr add 10.0.0.11/24 dev ens18 label ens18:eip")?;
    netns.exec("ip addr add 10.0.0.13/24 dev ens18")?;
    netns.exec("ip addr add 10.0.0.50/32 dev ens18 label ens18:vip")?;
    let first = apply(&netns, "ens18", &[], &[])?;
    assert_eq!(first, done(&[(FIRST, "Removed")], &[]));
    let expected = ["10.0.0.13/24 ens18", "10.0.0.2/24 ens18", "10.0.0.50/32 ens18:vip"];
    assert_eq!(on_link(&netns, "ens18")?, expected);
    Ok(())
}

/// Defect B10 of the original: an address of the admin was deleted on release.
#[test]
#[ignore = "needs root"]
fn an_address_that_was_there_before_is_used_and_survives_release() -> Result<()> {
    let netns = node("ens18")?;
    netns.exec("ip addr add 10.0.0.11/24 dev ens18")?;
    let claimed = apply(&netns, "ens18", &[egress(FIRST, "ens18")], &[])?;
    assert_eq!(claimed, done(&[(FIRST, "PreExisting")], &[]));
    let released = apply(&netns, "ens18", &[], &claimed.owned.into_iter().collect::<Vec<_>>())?;
    assert_eq!(released, done(&[], &[]));
    assert_eq!(on_link(&netns, "ens18")?, ["10.0.0.11/24 ens18", "10.0.0.2/24 ens18"]);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn on_a_link_with_a_long_name_the_record_stands_for_the_label() -> Result<()> {
    let netns = node("enp0s31f61ab")?;
    let claimed = apply(&netns, "enp0s31f61ab", &[egress(FIRST, "enp0s31f61ab")], &[])?;
    assert_eq!(claimed, done(&[(FIRST, "Added")], &[FIRST]));
    let expected = ["10.0.0.11/24 enp0s31f61ab", "10.0.0.2/24 enp0s31f61ab"];
    assert_eq!(on_link(&netns, "enp0s31f61ab")?, expected);
    let kept = apply(&netns, "enp0s31f61ab", &[egress(FIRST, "enp0s31f61ab")], &[FIRST])?;
    assert_eq!(kept, done(&[(FIRST, "Present")], &[FIRST]));
    let released = apply(&netns, "enp0s31f61ab", &[], &[FIRST])?;
    assert_eq!(released, done(&[(FIRST, "Removed")], &[]));
    assert_eq!(on_link(&netns, "enp0s31f61ab")?, ["10.0.0.2/24 enp0s31f61ab"]);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn the_node_address_and_a_refused_one_do_not_stop_the_others() -> Result<()> {
    let netns = node("ens18")?;
    let refused = EgressAddress { prefix_len: 33, ..egress(FIRST, "ens18") };
    let desired = [egress(NODE, "ens18"), refused, egress(SECOND, "ens18")];
    let outcomes = apply(&netns, "ens18", &desired, &[])?.outcomes;
    assert!(outcomes[&NODE].starts_with("Failed: egress IP 10.0.0.2 is the node's own address"));
    assert!(outcomes[&FIRST].starts_with("Failed: add address 10.0.0.11/33"), "{outcomes:?}");
    assert_eq!(outcomes[&SECOND], "Added");
    assert_eq!(on_link(&netns, "ens18")?, ["10.0.0.13/24 ens18:eip", "10.0.0.2/24 ens18"]);
    Ok(())
}

/// A DHCP client or an admin removes the node's address and adds it again: now the egress IP is
/// the primary one, and the kernel would delete the node's address with it.
#[test]
#[ignore = "needs root"]
fn releasing_an_egress_ip_that_became_primary_leaves_the_node_address() -> Result<()> {
    let netns = node("ens18")?;
    let both = [egress(FIRST, "ens18"), egress(SECOND, "ens18")];
    apply(&netns, "ens18", &both, &[])?;
    netns.exec("ip addr del 10.0.0.2/24 dev ens18")?;
    apply(&netns, "ens18", &both, &[])?;
    netns.exec("ip addr add 10.0.0.2/24 dev ens18")?;
    let sysctl = "cat /proc/sys/net/ipv4/conf/ens18/promote_secondaries";
    assert_eq!(netns.exec(sysctl)?.trim(), "0", "else the kernel takes nothing along");

    let released = apply(&netns, "ens18", &both[1..], &[])?;
    assert_eq!(released, done(&[(FIRST, "Removed"), (SECOND, "Present")], &[]));
    assert_eq!(on_link(&netns, "ens18")?, ["10.0.0.13/24 ens18:eip", "10.0.0.2/24 ens18"]);
    assert_eq!(netns.exec(sysctl)?.trim(), "0", "the sysctl is put back");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn all_of_a_subnet_go_at_once_and_an_address_taken_by_hand_comes_back() -> Result<()> {
    let netns = node("ens18")?;
    let elsewhere = |last| egress(Ipv4Addr::new(192, 168, 7, last), "ens18");
    let three = [elsewhere(1), elsewhere(2), elsewhere(3)];
    apply(&netns, "ens18", &three, &[])?;
    // The primary: the kernel deletes the other two with it.
    netns.exec("ip addr del 192.168.7.1/24 dev ens18")?;
    assert_eq!(on_link(&netns, "ens18")?, ["10.0.0.2/24 ens18"]);
    let restored = apply(&netns, "ens18", &three, &[])?;
    assert!(restored.outcomes.values().all(|outcome| outcome == "Added"), "{restored:?}");
    let released = apply(&netns, "ens18", &[], &[])?;
    assert_eq!(released.outcomes.len(), 3);
    assert!(released.outcomes.values().all(|outcome| outcome == "Removed"), "{released:?}");
    assert_eq!(on_link(&netns, "ens18")?, ["10.0.0.2/24 ens18"]);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn another_prefix_length_replaces_the_address_in_one_run() -> Result<()> {
    let netns = node("ens18")?;
    apply(&netns, "ens18", &[egress(FIRST, "ens18")], &[])?;
    let wider = EgressAddress { prefix_len: 16, ..egress(FIRST, "ens18") };
    let replaced = apply(&netns, "ens18", std::slice::from_ref(&wider), &[])?;
    assert_eq!(replaced, done(&[(FIRST, "Added")], &[]));
    assert_eq!(on_link(&netns, "ens18")?, ["10.0.0.11/16 ens18:eip", "10.0.0.2/24 ens18"]);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn an_address_added_or_deleted_twice_is_told_and_no_error() -> Result<()> {
    let netns = node("ens18")?;
    netns.block_on(|| async {
        let netlink = Netlink::open()?;
        let link = netlink.link_by_name("ens18").await?.context("ens18 is missing")?;
        for expected in [Added::New, Added::Existed] {
            let added = netlink.add_address(link.index, FIRST, 24, Some("ens18:eip")).await?;
            assert_eq!(added, expected);
        }
        let addresses = netlink.addresses(link.index).await?;
        let ours = addresses.iter().find(|address| address.ip == FIRST).context("was added")?;
        assert_eq!((ours.prefix_len, ours.label.as_str(), ours.secondary), (24, "ens18:eip", true));
        let of_somebody_else = Address { label: "ens18:vip".into(), ..ours.clone() };
        for (address, expected) in [(&of_somebody_else, false), (ours, true), (ours, false)] {
            assert_eq!(netlink.delete_address(link.index, address).await?, expected);
        }
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn what_the_uplink_does_not_carry_is_to_be_probed() -> Result<()> {
    let netns = node("ens18")?;
    netns.exec("ip addr add 10.0.0.11/32 dev ens18")?;
    let to_probe = netns.block_on(|| async {
        let netlink = Netlink::open()?;
        let link = netlink.link_by_name("ens18").await?.context("ens18 is missing")?;
        let desired = [egress(FIRST, "ens18"), egress(SECOND, "ens18")].into();
        missing(&netlink, &link, &desired).await
    })?;
    assert_eq!(to_probe, BTreeSet::from([SECOND]));
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn links_are_found_by_name_number_address_and_default_route() -> Result<()> {
    let netns = node("ens18")?;
    netns.exec("ip link set dev ens18 address 22:3b:a9:a4:8e:0c mtu 1400")?;
    netns.exec("ip link set dev far down")?;
    let (uplink, found) = netns.block_on(|| async {
        let netlink = Netlink::open()?;
        let uplink = netlink.link_by_name("ens18").await?.context("ens18 is missing")?;
        ensure!(netlink.link_by_name("ens19").await?.is_none());
        ensure!(netlink.link_by_name("a name that is too long").await?.is_none());
        ensure!(netlink.link_by_index(9999).await?.is_none());
        ensure!(netlink.link_with(FIRST).await?.is_none());
        let by_address = netlink.link_with(NODE).await?.context("10.0.0.2 is missing")?;
        ensure!(by_address.1.prefix_len == 24);
        let found = [
            netlink.link_by_index(uplink.index).await?,
            Some(by_address.0),
            netlink.default_route_link().await?,
        ];
        Ok((uplink, found))
    })?;
    let expected = Link {
        index: uplink.index,
        name: "ens18".into(),
        mac: Some([0x22, 0x3b, 0xa9, 0xa4, 0x8e, 0x0c]),
        mtu: 1400,
        kind: Some("veth".into()),
        up: false,
        outages: uplink.outages,
        vlan: None,
    };
    assert_eq!(uplink, expected);
    assert_eq!(found, [(); 3].map(|()| Some(expected.clone())));
    netns.exec("ip link set dev far up")?;
    netns.exec("ip link add name other type veth peer name otherfar")?;
    netns.exec("ip link set dev other up")?;
    netns.exec("ip route add default dev other metric 50")?;
    let (up, by_metric) = netns.block_on(|| async {
        let netlink = Netlink::open()?;
        Ok((netlink.link_by_name("ens18").await?, netlink.default_route_link().await?))
    })?;
    assert!(up.is_some_and(|link| link.up), "the far end is up again");
    assert_eq!(by_metric.map(|link| link.name).as_deref(), Some("ens18"), "metric 0 is lower");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn each_kind_of_change_wakes_and_lost_notifications_wake_for_everything() -> Result<()> {
    let netns = node("ens18")?;
    netns.block_on(|| async {
        let mut events = Subscription::open()?;
        let none = Changes::default();
        for (command, expected) in [
            (
                "ip neigh add 10.0.0.1 lladdr 02:00:00:00:00:01 dev ens18",
                Changes { neighbours: true, ..none },
            ),
            ("ip route add 203.0.113.0/24 via 10.0.0.1", Changes { routes: true, ..none }),
            ("ip link set dev far alias x", Changes { links: true, ..none }),
            // The kernel adds local routes with an address.
            (
                "ip addr add 10.0.0.11/24 dev ens18",
                Changes { addresses: true, routes: true, ..none },
            ),
        ] {
            netns.exec(command)?;
            let told = tokio::time::timeout(DEADLINE, events.next()).await.context(command)?;
            assert_eq!(told, expected, "{command}");
        }
        // More than the socket holds while nobody reads.
        let netlink = Netlink::open()?;
        let link = netlink.link_by_name("ens18").await?.context("ens18 is missing")?;
        for ip in (0..1000).map(|n| Ipv4Addr::from_bits(0xc0a8_0001 + n)) {
            netlink.add_address(link.index, ip, 16, None).await?;
        }
        let told = tokio::time::timeout(DEADLINE, events.next()).await?;
        assert_eq!(told, Changes::ALL);
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn a_node_knows_itself_by_flag_else_by_default_route_else_says_why_not() -> Result<()> {
    let netns = node("ens18")?;
    netns.exec("ip addr add 10.0.0.11/24 dev ens18 label ens18:eip")?;
    let identify_as = |settings: NodeSettings| {
        netns.block_on(|| async move { identify(&Netlink::open()?, &settings).await })
    };
    // A name that no name server knows (RFC 6761), so that the test asks the rig alone.
    let named = |name: &str| NodeSettings { name: Some(name.into()), ..Default::default() };
    let router = named("ocprouter01.invalid");

    let by_route = identify_as(router.clone())?.expect("the default route's interface");
    assert_eq!((by_route.ip, by_route.prefix_len), (NODE, 24));
    assert_eq!(
        (by_route.name.as_str(), by_route.uplink.name.as_str()),
        ("ocprouter01.invalid", "ens18")
    );
    let by_flag = identify_as(NodeSettings { ip: Some(NODE), ..router.clone() })?;
    assert_eq!(by_flag.as_ref(), Ok(&by_route));
    assert_eq!(identify_as(named("10.0.0.2"))?.map(|found| found.ip), Ok(NODE), "a literal");

    let elsewhere = Ipv4Addr::new(10, 9, 9, 9);
    let name = router.name.clone().expect("set above");
    let refused = identify_as(NodeSettings { ip: Some(elsewhere), ..router.clone() })?;
    assert_eq!(refused, Err(Unidentified::NotLocal { name: name.clone(), ip: elsewhere }));
    let refused = identify_as(NodeSettings { uplink: Some("ens19".into()), ..router.clone() })?;
    assert_eq!(refused, Err(Unidentified::NoUplink { uplink: "ens19".into() }));
    let refused =
        identify_as(NodeSettings { ip: Some(NODE), uplink: Some("far".into()), ..router.clone() })?;
    let (link, uplink) = ("ens18".into(), "far".into());
    assert_eq!(refused, Err(Unidentified::NotOnUplink { ip: NODE, link, uplink }));
    netns.exec("ip route del default")?;
    assert_eq!(identify_as(router)?, Err(Unidentified::NoAddress { name }));
    Ok(())
}
