//! How this node watches the others, and what it does when it hears nobody.
use std::time::Duration;

use serde::Deserialize;

use super::duration;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Health {
    /// Between two questions to a node that hosts egress IPs; 0s: none is asked, none is offline.
    #[serde(deserialize_with = "duration")]
    pub interval: Duration,
    /// So many questions one after the other without an answer: the node is offline.
    pub misses: u32,
    /// So long a node that was offline must have answered before it counts again.
    #[serde(deserialize_with = "duration")]
    pub hold_down: Duration,
    /// Between two tries of the original's test, while all is well.
    #[serde(deserialize_with = "duration")]
    pub gateway_interval: Duration,
    /// Without a sign of any other node for so long, this node stops answering for its egress IPs;
    /// 0s: never.
    #[serde(deserialize_with = "duration")]
    pub lease: Duration,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(200),
            misses: 3,
            hold_down: Duration::from_secs(3),
            gateway_interval: Duration::from_secs(5),
            lease: Duration::ZERO,
        }
    }
}

impl Health {
    pub(super) fn check(&self) -> Result<(), String> {
        let Self { interval, misses, hold_down: _, gateway_interval, lease } = *self;
        if !interval.is_zero() && interval < Duration::from_millis(20) {
            return Err(format!("health.interval: {interval:?} is too short: at least 20ms"));
        }
        if misses == 0 {
            return Err("health.misses: 0 makes every node offline: at least 1".into());
        }
        if gateway_interval < interval {
            return Err(format!(
                "health.gatewayInterval: {gateway_interval:?} is shorter than health.interval"
            ));
        }
        if !lease.is_zero() && lease < Duration::from_secs(1).max(interval * 3) {
            return Err(format!(
                "health.lease: {lease:?} is too short: at least 1s, and three times health.interval"
            ));
        }
        Ok(())
    }
}
