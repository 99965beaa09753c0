//! Names and flags of the old commands, and how they are read: as commons-cli does, `-t T`, `-tT`, `--topic T`,
//! `--topic=T`, `-topic T`.

use std::collections::BTreeMap;

use crate::admin::{AdminError, Outcome};

/// One flag.
#[derive(Debug)]
pub struct Flag {
    pub short: char,
    pub long: &'static str,
    pub takes_value: bool,
    pub required: bool,
}

/// One command.
#[derive(Debug)]
pub struct Spec {
    pub name: &'static str,
    pub about: &'static str,
    pub flags: &'static [Flag],
}

/// A flag with a value.
const fn with(short: char, long: &'static str) -> Flag {
    Flag {
        short,
        long,
        takes_value: true,
        required: false,
    }
}

/// A flag with a value that has to be there.
const fn need(short: char, long: &'static str) -> Flag {
    Flag {
        short,
        long,
        takes_value: true,
        required: true,
    }
}

/// A flag without a value.
const fn bare(short: char, long: &'static str) -> Flag {
    Flag {
        short,
        long,
        takes_value: false,
        required: false,
    }
}

/// A flag of every command.
const NAMESRV: Flag = with('n', "namesrvAddr");

/// What is offered.
pub const COMMANDS: &[Spec] = &[
    Spec {
        name: "updateTopic",
        about: "Update or create topic.",
        flags: &[
            with('b', "brokerAddr"),
            with('c', "clusterName"),
            with('a', "attributes"),
            need('t', "topic"),
            with('r', "readQueueNums"),
            with('w', "writeQueueNums"),
            with('p', "perm"),
            with('o', "order"),
            with('u', "unit"),
            with('s', "hasUnitSub"),
        ],
    },
    Spec {
        name: "updateTopicPerm",
        about: "Update topic perm.",
        flags: &[
            with('b', "brokerAddr"),
            with('c', "clusterName"),
            need('t', "topic"),
            need('p', "perm"),
        ],
    },
    Spec {
        name: "deleteTopic",
        about: "Delete topic from broker and NameServer.",
        flags: &[need('t', "topic"), need('c', "clusterName")],
    },
    Spec {
        name: "topicList",
        about: "Fetch all topic list from name server.",
        flags: &[bare('c', "clusterModel")],
    },
    Spec {
        name: "topicRoute",
        about: "Examine topic route info.",
        flags: &[need('t', "topic"), bare('l', "list")],
    },
    Spec {
        name: "topicStatus",
        about: "Examine topic Status info.",
        flags: &[need('t', "topic"), with('c', "cluster")],
    },
    Spec {
        name: "topicClusterList",
        about: "Get cluster info for topic.",
        flags: &[need('t', "topic")],
    },
    Spec {
        name: "updateOrderConf",
        about: "Create or update or delete order conf.",
        flags: &[
            need('t', "topic"),
            with('v', "orderConf"),
            need('m', "method"),
        ],
    },
    Spec {
        name: "clusterList",
        about: "List cluster infos.",
        flags: &[
            bare('m', "moreStats"),
            with('i', "interval"),
            with('c', "clusterName"),
        ],
    },
    Spec {
        name: "brokerStatus",
        about: "Fetch broker runtime status data.",
        flags: &[with('b', "brokerAddr"), with('c', "clusterName")],
    },
    Spec {
        name: "getBrokerConfig",
        about: "Get broker config by cluster or special broker.",
        flags: &[with('b', "brokerAddr"), with('c', "clusterName")],
    },
    Spec {
        name: "updateBrokerConfig",
        about: "Update broker's config.",
        flags: &[
            with('b', "brokerAddr"),
            with('c', "clusterName"),
            with('a', "updateAllBroker"),
            need('k', "key"),
            need('v', "value"),
        ],
    },
    Spec {
        name: "getNamesrvConfig",
        about: "Get configs of name server.",
        flags: &[],
    },
    Spec {
        name: "updateKvConfig",
        about: "Create or update KV config.",
        flags: &[need('s', "namespace"), need('k', "key"), need('v', "value")],
    },
    Spec {
        name: "deleteKvConfig",
        about: "Delete KV config.",
        flags: &[need('s', "namespace"), need('k', "key")],
    },
    Spec {
        name: "wipeWritePerm",
        about: "Wipe write perm of broker in all name server.",
        flags: &[need('b', "brokerName")],
    },
    Spec {
        name: "addWritePerm",
        about: "Add write perm of broker in all name server.",
        flags: &[need('b', "brokerName")],
    },
    Spec {
        name: "updateSubGroup",
        about: "Update or create subscription group.",
        flags: &[
            with('b', "brokerAddr"),
            with('c', "clusterName"),
            need('g', "groupName"),
            with('s', "consumeEnable"),
            with('m', "consumeFromMinEnable"),
            with('d', "consumeBroadcastEnable"),
            with('o', "consumeMessageOrderly"),
            with('q', "retryQueueNums"),
            with('r', "retryMaxTimes"),
            with('p', "groupRetryPolicy"),
            with('i', "brokerId"),
            with('w', "whichBrokerWhenConsumeSlowly"),
            with('a', "notifyConsumerIdsChanged"),
        ],
    },
    Spec {
        name: "deleteSubGroup",
        about: "Delete subscription group from broker.",
        flags: &[
            with('b', "brokerAddr"),
            with('c', "clusterName"),
            need('g', "groupName"),
            with('r', "removeOffset"),
        ],
    },
    Spec {
        name: "getConsumerConfig",
        about: "Get consumer config by subscription group name.",
        flags: &[need('g', "groupName")],
    },
    Spec {
        name: "setConsumeMode",
        about: "Set consume message mode. pull/pop etc.",
        flags: &[
            with('b', "brokerAddr"),
            with('c', "clusterName"),
            need('t', "topicName"),
            need('g', "groupName"),
            need('m', "mode"),
            with('q', "popShareQueueNum"),
        ],
    },
    Spec {
        name: "consumerProgress",
        about: "Query consumer's progress, speed.",
        flags: &[
            with('g', "groupName"),
            with('t', "topicName"),
            with('s', "showClientIP"),
            with('c', "cluster"),
        ],
    },
    Spec {
        name: "consumerConnection",
        about: "Query consumer's socket connection, client version and subscription.",
        flags: &[need('g', "consumerGroup"), with('b', "brokerAddr")],
    },
    Spec {
        name: "producerConnection",
        about: "Query producer's socket connection and client version.",
        flags: &[need('g', "producerGroup"), need('t', "topic")],
    },
    Spec {
        name: "resetOffsetByTime",
        about: "Reset consumer offset by timestamp(without client restart).",
        flags: &[
            need('g', "group"),
            need('t', "topic"),
            need('s', "timestamp"),
            with('f', "force"),
            with('b', "broker"),
            with('q', "queue"),
            with('o', "offset"),
            with('c', "cluster"),
        ],
    },
    Spec {
        name: "skipAccumulatedMessage",
        about: "Skip all messages that are accumulated (not consumed) currently.",
        flags: &[
            need('g', "group"),
            need('t', "topic"),
            with('f', "force"),
            with('c', "cluster"),
        ],
    },
    Spec {
        name: "cloneGroupOffset",
        about: "Clone offset from other group.",
        flags: &[
            need('s', "srcGroup"),
            need('d', "destGroup"),
            need('t', "topic"),
            with('o', "offline"),
        ],
    },
    Spec {
        name: "queryMsgById",
        about: "Query Message by Id.",
        flags: &[
            with('t', "topic"),
            need('i', "msgId"),
            with('f', "bodyFormat"),
            with('c', "cluster"),
        ],
    },
    Spec {
        name: "queryMsgByKey",
        about: "Query Message by Key.",
        flags: &[
            need('t', "topic"),
            need('k', "msgKey"),
            with('b', "beginTimestamp"),
            with('e', "endTimestamp"),
            with('m', "maxNum"),
            with('c', "cluster"),
        ],
    },
    Spec {
        name: "queryMsgByUniqueKey",
        about: "Query Message by Unique key.",
        flags: &[
            need('i', "msgId"),
            need('t', "topic"),
            bare('a', "showAll"),
            with('c', "cluster"),
        ],
    },
    Spec {
        name: "queryMsgByOffset",
        about: "Query Message by offset.",
        flags: &[
            need('t', "topic"),
            need('b', "brokerName"),
            need('i', "queueId"),
            need('o', "offset"),
            with('f', "bodyFormat"),
        ],
    },
    Spec {
        name: "sendMessage",
        about: "Send a message.",
        flags: &[
            need('t', "topic"),
            need('p', "body"),
            with('k', "key"),
            with('c', "tags"),
            with('b', "broker"),
            with('i', "qid"),
            with('m', "msgTraceEnable"),
        ],
    },
    Spec {
        name: "consumeMessage",
        about: "Consume message.",
        flags: &[
            need('t', "topic"),
            with('b', "brokerName"),
            with('i', "queueId"),
            with('o', "offset"),
            with('g', "consumerGroup"),
            with('s', "beginTimestamp"),
            with('e', "endTimestamp"),
            with('c', "MessageNumber"),
        ],
    },
    Spec {
        name: "printMsg",
        about: "Print Message Detail.",
        flags: &[
            need('t', "topic"),
            with('c', "charsetName"),
            with('b', "beginTimestamp"),
            with('e', "endTimestamp"),
            with('d', "printBody"),
        ],
    },
    Spec {
        name: "printMsgByQueue",
        about: "Print Message Detail by queueId.",
        flags: &[
            need('t', "topic"),
            need('a', "brokerName"),
            need('i', "queueId"),
            with('c', "charsetName"),
            with('b', "beginTimestamp"),
            with('e', "endTimestamp"),
            with('p', "print msg"),
            with('d', "printBody"),
        ],
    },
];

impl Spec {
    /// Its flags, a line each.
    pub fn usage(&self) -> String {
        let mut text = format!("usage: ringmq mqadmin {}", self.name);
        for flag in self.all() {
            let value = if flag.takes_value { " <arg>" } else { "" };
            let required = if flag.required { "  required" } else { "" };
            text.push_str(&format!(
                "\n  -{},--{}{value}{required}",
                flag.short, flag.long
            ));
        }
        text
    }

    fn all(&self) -> impl Iterator<Item = &Flag> {
        self.flags.iter().chain([&NAMESRV])
    }

    fn short(&self, short: char) -> Option<&Flag> {
        self.all().find(|flag| flag.short == short)
    }

    fn long(&self, long: &str) -> Option<&Flag> {
        self.all().find(|flag| flag.long == long)
    }
}

/// The flags of a command line.
#[derive(Debug)]
pub struct Flags {
    pub spec: &'static Spec,
    values: BTreeMap<char, String>,
}

impl Flags {
    pub fn parse(spec: &'static Spec, words: &[String]) -> Outcome<Self> {
        let wrong = |what: String| AdminError::Usage(format!("{what}\n{}", spec.usage()));
        let mut values = BTreeMap::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let (flag, attached) = find(spec, word)
                .ok_or_else(|| wrong(format!("'{word}' is no flag of {}", spec.name)))?;
            let value = match (flag.takes_value, attached) {
                (false, None) => String::new(),
                (false, Some(_)) => {
                    return Err(wrong(format!("the flag -{} takes no value", flag.short)));
                }
                (true, Some(value)) => value,
                (true, None) => words
                    .next()
                    .cloned()
                    .ok_or_else(|| wrong(format!("the flag -{} lacks its value", flag.short)))?,
            };
            values.insert(flag.short, value.trim().to_owned());
        }
        for flag in spec.flags.iter().filter(|flag| flag.required) {
            if !values.contains_key(&flag.short) {
                return Err(wrong(format!("the flag -{} is missing", flag.short)));
            }
        }
        Ok(Self { spec, values })
    }

    /// The value of a flag; empty for one that takes none.
    pub fn get(&self, short: char) -> Option<&str> {
        self.values.get(&short).map(String::as_str)
    }

    pub fn has(&self, short: char) -> bool {
        self.values.contains_key(&short)
    }
}

/// The flag that a word is, and the value if that is in the same word.
fn find<'a>(spec: &'a Spec, word: &str) -> Option<(&'a Flag, Option<String>)> {
    let name = word.strip_prefix('-')?;
    let long = name.strip_prefix('-').unwrap_or(name);
    let (long, value) = match long.split_once('=') {
        Some((long, value)) => (long, Some(value.to_owned())),
        None => (long, None),
    };
    if let Some(flag) = spec.long(long) {
        return Some((flag, value));
    }
    if name.starts_with('-') {
        return None;
    }
    let mut characters = name.chars();
    let flag = spec.short(characters.next()?)?;
    let rest = characters.as_str();
    match rest {
        "" => Some((flag, None)),
        _ => Some((
            flag,
            Some(rest.strip_prefix('=').unwrap_or(rest).to_owned()),
        )),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Outcome<Flags> {
        let spec = COMMANDS.iter().find(|spec| spec.name == "topicStatus");
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Flags::parse(spec.unwrap(), &words)
    }

    #[test]
    fn a_flag_may_be_written_in_all_ways_of_the_original() {
        for words in [
            &["-t", "T"][..],
            &["-tT"],
            &["-t=T"],
            &["--topic", "T"],
            &["--topic=T"],
            &["-topic", "T"],
            &["-n", "a:1;b:2", "-t", " T "],
        ] {
            assert_eq!(parse(words).unwrap().get('t'), Some("T"), "{words:?}");
        }
    }

    #[test]
    fn what_is_no_flag_or_is_missing_is_named() {
        for (words, wanted) in [
            (&["-x", "1"][..], "'-x'"),
            (&["T"], "'T'"),
            (&["-t"], "lacks its value"),
            (&["-c", "C"], "-t is missing"),
        ] {
            let error = parse(words).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
            assert!(error.contains("--topic"), "{error}");
        }
    }

    #[test]
    fn no_command_has_one_letter_twice() {
        for spec in COMMANDS {
            let mut letters: Vec<char> = spec.all().map(|flag| flag.short).collect();
            let count = letters.len();
            letters.sort_unstable();
            letters.dedup();
            assert_eq!(letters.len(), count, "{}", spec.name);
        }
    }
}
