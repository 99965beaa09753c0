"""The C++ client of RocketMQ 1.x through its Python wheel (`rocketmq` 0.4.4, librocketmq inside) against NAMESRV_ADDR.

Not tried: `send_batch` of this wheel, which stores one empty message on RocketMQ itself too. Each check prints one line; the exit code is 1 if one failed. Checks can be named as arguments.
"""

import collections
import os
import sys
import threading
import time
import traceback

from rocketmq.client import Message, Producer, PullConsumer, PushConsumer, SendStatus
from rocketmq.ffi import MessageModel

ADDRESS = os.environ["NAMESRV_ADDR"]
RUN = "%d-%d" % (time.time() * 1000, os.getpid())
WAIT_S = float(os.environ.get("CHECK_WAIT_S", "60"))
checks = []


def check(function):
    checks.append(function)
    return function


def name(prefix):
    return "py-%s-%s" % (prefix, RUN)


def message(topic, body, tags=None, keys=None):
    made = Message(topic)
    made.set_body(body)
    made.set_tags(tags or "TagA")
    if keys:
        made.set_keys(keys)
    return made


def producer(group=None):
    made = Producer(group or name("producer"), timeout=10000)
    made.set_namesrv_addr(ADDRESS)
    made.start()
    return made


def until(what, condition):
    """Waits while this process runs: time in which it was stopped does not count."""
    waited = 0
    while not condition():
        if waited > WAIT_S:
            raise AssertionError("not within %s s: %s" % (WAIT_S, what() if callable(what) else what))
        begun = time.time()
        time.sleep(0.02)
        waited += min(time.time() - begun, 0.2)


class Listener(object):
    """A push consumer that keeps what it got, thread safe."""

    def __init__(self, group, topic, orderly=False, model=MessageModel.CLUSTERING, expression="*", refuse=None, instance=None):
        self.lock = threading.Lock()
        self.got = []
        self.refuse = refuse or (lambda message: False)
        self.consumer = PushConsumer(group, orderly=orderly, message_model=model)
        self.consumer.set_namesrv_addr(ADDRESS)
        self.consumer.set_instance_name(instance or group)
        self.consumer.subscribe(topic, self.on_message, expression)
        self.consumer.start()

    def on_message(self, message):
        entry = (message.body.decode(), message.queue_id, message.queue_offset, message.reconsume_times, time.time(), message.tags, message.topic)
        with self.lock:
            self.got.append(entry)
        if self.refuse(message):
            raise RuntimeError("again, please")

    def bodies(self):
        with self.lock:
            return [entry[0] for entry in self.got]

    def close(self):
        self.consumer.shutdown()


@check
def sync_sends_arrive_once():
    topic = name("sync")
    sender = producer()
    results = [sender.send_sync(message(topic, "sync %d" % n, keys="k%d" % n)) for n in range(40)]
    assert all(r.status == SendStatus.OK for r in results), results
    assert len(set(r.msg_id for r in results)) == 40
    listener = Listener(name("g-sync"), topic)
    until(lambda: listener.bodies(), lambda: len(listener.bodies()) >= 40)
    time.sleep(0.5)
    assert collections.Counter(listener.bodies()) == collections.Counter("sync %d" % n for n in range(40)), listener.bodies()
    listener.close()
    sender.shutdown()


@check
def async_and_oneway_sends_arrive():
    topic = name("async")
    sender = producer()
    sender.send_sync(message(topic, "first"))
    done, failed = [], []
    for n in range(20):
        sender.send_async(message(topic, "async %d" % n), done.append, failed.append)
        sender.send_oneway(message(topic, "oneway %d" % n))
    until(lambda: (done, failed), lambda: len(done) + len(failed) >= 20)
    assert not failed, failed
    listener = Listener(name("g-async"), topic)
    until(lambda: listener.bodies(), lambda: len(listener.bodies()) >= 41)
    listener.close()
    sender.shutdown()


@check
def orderly_sends_come_in_order():
    topic = name("orderly")
    sender = producer()
    sender.send_sync(message(topic, "first"))
    for n in range(60):
        result = sender.send_orderly(message(topic, "%d-%03d" % (n % 3, n)), n % 3)
        assert result.status == SendStatus.OK
    listener = Listener(name("g-orderly"), topic, orderly=True)
    until(lambda: listener.bodies(), lambda: len(listener.bodies()) >= 61)
    for key in range(3):
        mine = [body for body in listener.bodies() if body.startswith("%d-" % key)]
        assert mine == sorted(mine) and len(mine) == 20, mine
    listener.close()
    sender.shutdown()


@check
def a_large_body_is_compressed_and_comes_back():
    topic = name("large")
    sender = producer()
    body = "all work and no play " * 5000
    assert sender.send_sync(message(topic, body)).status == SendStatus.OK
    listener = Listener(name("g-large"), topic)
    until("the large body", lambda: listener.bodies() == [body])
    listener.close()
    sender.shutdown()


@check
def a_delayed_message_comes_when_it_is_due():
    topic = name("delay")
    sender = producer()
    sender.send_sync(message(topic, "first"))
    listener = Listener(name("g-delay"), topic)
    until("the first", lambda: listener.bodies())
    late = message(topic, "late")
    late.set_delay_time_level(2)  # 5 s
    sent_at = time.time()
    assert sender.send_sync(late).status == SendStatus.OK
    until("the delayed one", lambda: "late" in listener.bodies())
    took = [entry[4] for entry in listener.got if entry[0] == "late"][0] - sent_at
    assert 4.9 < took < 8, took
    listener.close()
    sender.shutdown()


@check
def tags_filter():
    topic = name("tags")
    sender = producer()
    sender.send_sync(message(topic, "red 0", tags="red"))
    listener = Listener(name("g-tags"), topic, expression="red || green")
    for n in range(1, 10):
        for tag in ("red", "green", "blue"):
            sender.send_sync(message(topic, "%s %d" % (tag, n), tags=tag))
    until(lambda: listener.bodies(), lambda: len(listener.bodies()) >= 19)
    time.sleep(1)
    assert len(listener.bodies()) == 19 and not [b for b in listener.bodies() if b.startswith("blue")], listener.bodies()
    listener.close()
    sender.shutdown()


@check
def a_refused_message_comes_again():
    topic = name("retry")
    sender = producer()
    sender.send_sync(message(topic, "refuse me"))
    listener = Listener(name("g-retry"), topic, refuse=lambda message: message.reconsume_times == 0)
    until(lambda: listener.got, lambda: [entry for entry in listener.got if entry[3] == 1])
    assert listener.got[0][3] == 0 and listener.got[1][0] == "refuse me", listener.got
    assert listener.got[1][4] - listener.got[0][4] > 9, listener.got
    listener.close()
    sender.shutdown()


@check
def pull_consumer_reads_everything():
    topic = name("pull")
    sender = producer()
    for n in range(30):
        sender.send_sync(message(topic, "pull %d" % n))
    consumer = PullConsumer(name("g-pull"))
    consumer.set_namesrv_addr(ADDRESS)
    consumer.start()
    bodies = [message.body.decode() for message in consumer.pull(topic)]
    assert sorted(bodies) == sorted("pull %d" % n for n in range(30)), bodies
    consumer.shutdown()
    sender.shutdown()


@check
def broadcast_reaches_each_consumer():
    # One client per process and instance name: this client keeps a table of its instances.
    topic = name("broadcast")
    sender = producer()
    sender.send_sync(message(topic, "first"))
    group = name("g-broadcast")
    listener = Listener(group, topic, model=MessageModel.BROADCASTING)
    time.sleep(2)
    for n in range(10):
        sender.send_sync(message(topic, "broadcast %d" % n))
    until(lambda: listener.bodies(), lambda: len(set(listener.bodies()) - {"first"}) == 10)
    listener.close()
    sender.shutdown()


@check
def a_second_run_of_a_group_goes_on_where_the_first_ended():
    topic, group = name("resume"), name("g-resume")
    sender = producer()
    for n in range(10):
        sender.send_sync(message(topic, "one %d" % n))
    listener = Listener(group, topic, instance=group + "-1")
    until(lambda: listener.bodies(), lambda: len(listener.bodies()) == 10)
    listener.close()
    del listener
    for n in range(10):
        sender.send_sync(message(topic, "two %d" % n))
    listener = Listener(group, topic, instance=group + "-2")
    until(lambda: listener.bodies(), lambda: len([b for b in listener.bodies() if b.startswith("two")]) == 10)
    time.sleep(1)
    assert not [b for b in listener.bodies() if b.startswith("one")], listener.bodies()
    listener.close()
    sender.shutdown()


def main():
    wanted = sys.argv[1:]
    failed = 0
    for function in checks:
        if wanted and function.__name__ not in wanted:
            continue
        begun = time.time()
        try:
            function()
            print("passed  python: %s, %.1f s" % (function.__name__, time.time() - begun), flush=True)
        except BaseException as problem:  # noqa: the client's own errors are of many kinds
            failed += 1
            traceback.print_exc()
            print("FAILED  python: %s: %r" % (function.__name__, problem), flush=True)
    sys.stdout.flush()
    os._exit(1 if failed else 0)  # The library's threads do not always end.


main()
