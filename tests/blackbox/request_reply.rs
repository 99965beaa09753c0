//! Request and reply from outside: a reply goes to the client that asked, by its id.

use std::time::Duration;

use crate::client::{Command, Connection, Message, answer, code};
use crate::node::{Setup, store_dir};

const GROUP: &str = "blackbox-askers";

/// What a consumer sends back for a request of `client_id` (`MessageUtil.createReplyMessage`).
fn reply(client_id: &str, correlation_id: &str, body: &str) -> Command {
    let mut command = Message::new("DefaultCluster_REPLY_TOPIC", 0, body)
        .property("MSG_TYPE", "reply")
        .property("CORRELATION_ID", correlation_id)
        .property("REPLY_TO_CLIENT", client_id)
        .property("TTL", "3000")
        .send_v2();
    command.code = code::SEND_REPLY_MESSAGE_V2;
    command
}

/// The next reply that is pushed to a client, which takes it.
fn pushed_reply(connection: &mut Connection) -> Command {
    loop {
        let is_reply = |pushed: &Command| pushed.code == code::PUSH_REPLY_MESSAGE_TO_CLIENT;
        if let Some(at) = connection.pushed.iter().position(is_reply) {
            let pushed = connection.pushed.remove(at);
            connection.take(&pushed).unwrap();
            return pushed;
        }
        let frame = connection.receive().unwrap();
        connection.pushed.push(frame);
    }
}

#[test]
fn a_reply_finds_the_client_that_asked_also_before_its_first_heartbeat() {
    let store = store_dir();
    let node = Setup::new(store.path(), 4).start();
    for round in 0..4 {
        let client_id = format!("asker-{round}");
        let (mut asker, mut replier) = (node.connect(), node.connect());
        if round % 2 == 0 {
            asker.producer_heartbeat(&client_id, GROUP).unwrap();
        }
        let waits = replier
            .start(&reply(&client_id, "7", &format!("reply {round}")))
            .unwrap();
        if round % 2 == 1 {
            std::thread::sleep(Duration::from_millis(200));
            asker.producer_heartbeat(&client_id, GROUP).unwrap();
        }
        let pushed = pushed_reply(&mut asker);
        assert_eq!(pushed.body, format!("reply {round}").into_bytes());
        assert!(pushed.fields["properties"].contains("CORRELATION_ID\u{1}7\u{2}"));
        let stored = replier.wait(waits).unwrap();
        assert_eq!(stored.code, answer::SUCCESS, "{}", stored.remark);
    }
    // The reply of nobody is refused by name, and its connection goes on.
    let mut replier = node.connect();
    let refused = replier.ask(&reply("nobody", "8", "too late")).unwrap();
    assert_eq!(refused.code, answer::SYSTEM_ERROR);
    assert!(refused.remark.contains("'nobody'"), "{}", refused.remark);
    replier.producer_heartbeat("nobody", GROUP).unwrap();
}
