use super::*;

const NODE: &str = "\
apiVersion: network.openshift.io/v1
kind: HostSubnet
metadata: {name: router}
host: router
hostIP: 10.0.0.2
subnet: 10.130.0.0/23
egressIPs: [10.0.0.11]
";

const NAMESPACE: &str = "\
apiVersion: network.openshift.io/v1
kind: NetNamespace
metadata: {name: blue}
netname: blue
netid: 42
egressIPs: [10.0.0.11]
";

fn read(text: &str) -> Input {
    let mut input = Input::default();
    input.add_text(text, "test").unwrap();
    input
}

fn names(input: &Input) -> Vec<&str> {
    let Objects { host_subnets, net_namespaces, cluster_networks, conditions: _ } = &input.objects;
    let keys = host_subnets.keys().chain(net_namespaces.keys()).chain(cluster_networks.keys());
    keys.map(String::as_str).collect()
}

fn conditions(input: &Input) -> Vec<(&str, Reason, &str)> {
    let conditions = input.objects.conditions.iter();
    conditions.map(|c| (c.object.as_str(), c.reason, c.message.as_str())).collect()
}

#[test]
fn several_documents_with_comments_and_empty_ones() {
    let input =
        read(&format!("# first\n---\n{NODE}---\n---\n# nothing\n--- # last\n{NAMESPACE}...\n"));
    assert_eq!(names(&input), ["router", "blue"]);
    assert_eq!(conditions(&input), []);
}

#[test]
fn windows_line_ends_and_a_byte_order_mark() {
    let text = format!("\u{feff}{NODE}---\n{NAMESPACE}").replace('\n', "\r\n");
    assert_eq!(names(&read(&text)), ["router", "blue"]);
}

#[test]
fn a_list_as_oc_prints_it_in_yaml_and_json() {
    let list = serde_json::json!({
        "apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "", "selfLink": ""},
        "items": [parse_yaml(NODE).unwrap(), parse_yaml(NAMESPACE).unwrap()],
    });
    let yaml = serde_saphyr::to_string(&list).unwrap();
    let json = serde_json::to_string_pretty(&list).unwrap();
    for text in [yaml, json.clone(), json.replace("  ", "\t"), list.to_string()] {
        assert_eq!(names(&read(&text)), ["router", "blue"], "{text}");
    }
}

#[test]
fn a_syntax_error_loses_only_its_document() {
    let input = read(&format!("{NODE}---\nkind: [\n---\n{NAMESPACE}"));
    assert_eq!(names(&input), ["router", "blue"]);
    let [(object, reason, message)] = conditions(&input)[..] else { panic!("one condition") };
    assert_eq!((object, reason), ("Document/test#2", Reason::Invalid));
    assert!(message.starts_with("no YAML or JSON: "), "{message}");
    assert!(!message.contains('\n'), "one sentence: {message}");
}

#[test]
fn a_refused_item_loses_no_other() {
    let bad = NAMESPACE.replace("blue", "green").replace("42", "16777216");
    let input = read(&format!("{NODE}---\n{bad}---\n{NAMESPACE}"));
    assert_eq!(names(&input), ["router", "blue"]);
    assert_eq!(
        conditions(&input),
        [(
            "NetNamespace/green",
            Reason::Invalid,
            "netid: 16777216 is no VNID: those are 24 bits wide, 0 to 16777215"
        )]
    );
}

#[test]
fn an_object_without_a_name_is_found_by_its_place() {
    let input = read(&format!("{NODE}---\nkind: NetNamespace\nnetid: 1\n"));
    let [(object, _, message)] = conditions(&input)[..] else { panic!("one condition") };
    assert_eq!(object, "NetNamespace/?");
    assert!(message.starts_with("test#2: "), "{message}");
}

#[test]
fn of_the_same_object_the_last_document_counts() {
    let again = NAMESPACE.replace("42", "43");
    let input = read(&format!("{NAMESPACE}---\n{again}---\n{again}"));
    assert_eq!(input.objects.net_namespaces["blue"].vnid, 43);
    let [(object, reason, _)] = conditions(&input)[..] else { panic!("one condition") };
    assert_eq!((object, reason), ("NetNamespace/blue", Reason::Duplicate));
}

#[test]
fn a_refused_document_does_not_replace_a_good_one() {
    let input = read(&format!("{NAMESPACE}---\n{}", NAMESPACE.replace("42", "-1")));
    assert_eq!(input.objects.net_namespaces["blue"].vnid, 42);
    assert_eq!(input.objects.refused().count(), 1);
}

#[test]
fn a_list_with_a_field_too_many_is_named_and_its_items_count() {
    let list = format!("kind: List\nitem: []\nitems:\n- {}", NODE.replace('\n', "\n  "));
    let input = read(&list);
    assert_eq!(names(&input), ["router"]);
    assert_eq!(
        conditions(&input),
        [("List/test#1", Reason::Invalid, "unknown field `item`: remove it")]
    );
}

#[test]
fn the_agent_config_may_be_among_the_documents() {
    let config = "apiVersion: egress/v1alpha1\nkind: AgentConfig\nmasqueradeBit: 3\n";
    let input = read(&format!("{NODE}---\n{config}"));
    assert_eq!(input.config.unwrap().masquerade_bit, 3);
}

#[test]
fn an_agent_config_that_cannot_be_used_is_an_error() {
    let error = Input::default()
        .add_text("apiVersion: egress/v1alpha1\nkind: AgentConfig\nmasqueradeBits: 3\n", "a.yaml")
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("AgentConfig in a.yaml#1: masqueradeBits: unknown field `masqueradeBits`")
    );
}

#[test]
fn a_list_of_10_000_namespaces_is_read() {
    let items = (0..10_000).map(|n| {
        serde_json::json!({
            "apiVersion": "network.openshift.io/v1", "kind": "NetNamespace", "netid": n,
            "netname": format!("n{n}"), "egressIPs": ["10.0.0.1"],
            "metadata": {"name": format!("n{n}"), "annotations": {"a": "1", "b": "2", "c": "3"},
                "labels": {"d": "4", "e": "5"}, "uid": "x", "resourceVersion": "1"},
        })
    });
    let list = serde_json::json!({"kind": "List", "items": items.collect::<Vec<_>>()});
    assert_eq!(read(&list.to_string()).objects.net_namespaces.len(), 10_000);
}

#[test]
fn deep_nesting_is_refused() {
    let input = read(&format!("kind: {}", "[".repeat(100_000)));
    assert_eq!(input.objects.refused().count(), 1);
}

/// Documents and items move, change, come and go; what is remembered must not show.
#[test]
fn a_file_that_changes_is_read_as_if_for_the_first_time() {
    let path = std::env::temp_dir().join(format!("egress-memory-{}.yaml", std::process::id()));
    let item = |name: &str, vnid: i32| {
        format!(
            "- apiVersion: v1\n  kind: NetNamespace\n  metadata: {{name: {name}}}\n  netid: {vnid}\n"
        )
    };
    let list = |items: &[String]| format!("apiVersion: v1\nitems:\n{}kind: List\n", items.concat());
    let (blue, green, bad) = (item("blue", 1), item("green", 2), item("red", -3));
    let json = r#"{"kind": "List", "items": [{"apiVersion": "v1", "kind": "NetNamespace",
        "metadata": {"name": "blue"}, "netid": 1}, {"kind": "Unknown"}]}"#;
    let texts = [
        list(&[blue.clone(), green.clone()]),
        list(&[green.clone(), blue.clone(), bad.clone(), blue.clone()]),
        list(&[green.clone(), item("blue", 7)]),
        format!("{NODE}---\n{NAMESPACE}---\n{}", list(std::slice::from_ref(&bad))),
        format!("{NAMESPACE}---\n{NODE}---\n{NAMESPACE}"),
        json.replace("1}", "8}"),
        json.to_owned(),
        "no: object\n".to_owned(),
        list(&[blue, green, "- text: \"begins\n- and ends\"\n".to_owned()]),
    ];
    let mut memory = Memory::default();
    for from in &texts {
        for text in [from].into_iter().chain(&texts) {
            fs::write(&path, text).unwrap();
            let paths = std::slice::from_ref(&path);
            let again = Input::read_again(paths, &mut memory).unwrap();
            assert_eq!(again, Input::read(paths).unwrap(), "{text}");
        }
    }
    fs::remove_file(path).unwrap();
}
