package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	rocketmq "github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/admin"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
)

// Two consumers of a group take two of the four queues each. Rounds of two messages a queue go on until they do.
func sharing(a *app) {
	topic, from := named("sharing"), a.producer()
	send(from, text(topic, "first"))
	one, two := a.collect("g-sharing", topic, everything), a.collect("g-sharing", topic, everything)
	round := 0
	shared := func() bool {
		before, already := len(one.all()), len(two.all())
		round++
		wanted := series(fmt.Sprintf("round %d,", round), 8)
		for _, body := range wanted {
			send(from, text(topic, body))
		}
		until(func() bool { return contains(append(one.bodies(), two.bodies()...), wanted) }, func() any {
			return fmt.Sprintf("%q and %q of %q", one.bodies()[before:], two.bodies()[already:], wanted)
		})
		return len(one.all())-before == 4 && len(two.all())-already == 4
	}
	until(shared, func() any {
		return fmt.Sprintf("%d rounds, %d messages here and %d there", round, len(one.all()), len(two.all()))
	})
	until(func() bool { return contains(append(one.bodies(), two.bodies()...), []string{"first"}) }, func() any { return "no first message" })
}

func contains(found, wanted []string) bool {
	return !slices.ContainsFunc(wanted, func(body string) bool { return !slices.Contains(found, body) })
}

func broadcast(a *app) {
	topic, from := named("broadcast"), a.producer()
	for _, body := range series("news", 20) {
		send(from, text(topic, body))
	}
	one := a.collect("g-broadcast", topic, everything, consumer.WithConsumerModel(consumer.BroadCasting))
	two := a.collect("g-broadcast", topic, everything, consumer.WithConsumerModel(consumer.BroadCasting))
	one.exactly(series("news", 20)...)
	two.exactly(series("news", 20)...)
}

func tags(a *app) {
	topic, from := named("tags"), a.producer()
	for n := range 40 {
		send(from, text(topic, fmt.Sprint("m ", n)).WithTag([]string{"blue", "red", "yellow", "green", ""}[n%5]))
	}
	var wanted []string
	for n := range 40 {
		if n%5 == 1 || n%5 == 3 {
			wanted = append(wanted, fmt.Sprint("m ", n))
		}
	}
	a.collect("g-tags", topic, consumer.MessageSelector{Type: consumer.TAG, Expression: "red || green"}).exactly(wanted...)
}

func sql92(a *app) {
	topic, from := named("sql92"), a.producer()
	var wanted []string
	for n := range 40 {
		message := text(topic, fmt.Sprint("m ", n))
		colour := []string{"blue", "red"}[n%2]
		message.WithProperty("number", fmt.Sprint(n))
		message.WithProperty("colour", colour)
		send(from, message)
		if n >= 10 && n <= 19 && colour == "red" || n > 37 {
			wanted = append(wanted, string(message.Body))
		}
	}
	expression := "(number BETWEEN 10 AND 19 AND colour = 'red') OR number > 37"
	a.collect("g-sql92", topic, consumer.MessageSelector{Type: consumer.SQL92, Expression: expression}).exactly(wanted...)
}

// A consumer gets what it refused again, after the delay of the level that it names, and at most as often as it says.
func deadLetters(a *app) {
	topic, from := named("refused"), a.producer()
	send(from, text(topic, "refused once"))
	send(from, text(topic, "refused always"))
	a.awaitTopic(topic)
	got := &inbox{}
	a.listen("g-refused", topic, everything, func(ctx context.Context, message *primitive.MessageExt) consumer.ConsumeResult {
		got.put(fmt.Sprint(string(message.Body), ", ", message.ReconsumeTimes), message)
		if string(message.Body) == "refused once" && message.ReconsumeTimes > 0 {
			return consumer.ConsumeSuccess
		}
		if about, found := primitive.GetConcurrentlyCtx(ctx); found {
			about.DelayLevelWhenNextConsume = 1
		}
		return consumer.ConsumeRetryLater
	}, consumer.WithMaxReconsumeTimes(2))
	dead := a.collect("g-dead", "%DLQ%"+named("g-refused"), everything)
	dead.exactly("refused always")
	got.exactly("refused once, 0", "refused once, 1", "refused always, 0", "refused always, 1", "refused always, 2")
}

func pull(a *app) {
	topic, from, ctx := named("pull"), a.producer(), context.Background()
	start := func() rocketmq.PullConsumer {
		made := must(rocketmq.NewPullConsumer(
			consumer.WithNsResolver(nameServers), consumer.WithGroupName(named("g-pull")), consumer.WithInstance(instance()),
			consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset), consumer.WithPullBatchSize(32)))
		ok(made.Subscribe(topic, everything))
		ok(made.Start())
		a.atEnd(made.Shutdown)
		return made
	}
	poll := func(from rocketmq.PullConsumer, wanted []string) *inbox {
		got := &inbox{}
		until(func() bool {
			request, err := from.Poll(ctx, 500*time.Millisecond)
			if err == nil {
				for _, message := range request.GetMsgList() {
					got.put(string(message.Body), message)
				}
				from.ACK(ctx, request, consumer.ConsumeSuccess)
			} else if !consumer.IsNoNewMsgError(err) {
				ok(err)
			}
			// Until a poll finds nothing more.
			return err != nil && len(got.all()) >= len(wanted)
		}, func() any { return fmt.Sprintf("%q of %q", got.bodies(), wanted) })
		same("bodies", sorted(got.bodies()), sorted(wanted))
		return got
	}

	for _, body := range series("early", 12) {
		send(from, text(topic, body))
	}
	a.awaitTopic(topic)
	first := start()
	early := poll(first, series("early", 12))

	// By queue and offset, without any commit.
	some := early.all()[0]
	var queue []string
	for _, one := range early.all() {
		if one.queue == some.queue {
			queue = append(queue, one.body)
		}
	}
	result := must(first.PullFrom(ctx, &primitive.MessageQueue{Topic: topic, BrokerName: some.from.Queue.BrokerName, QueueId: some.queue}, 0, 32))
	var again []string
	for _, message := range result.GetMessageExts() {
		again = append(again, string(message.Body))
	}
	same("pulled again", again, queue)

	ok(first.PersistOffset(ctx, topic))
	ok(first.Shutdown())
	for _, body := range series("late", 4) {
		send(from, text(topic, body))
	}
	poll(start(), series("late", 4))
}

func namespaces(a *app) {
	topic, other := named("same"), named("namespace")
	inside, outside := a.producer(producer.WithNamespace(other)), a.producer()
	for n := range 10 {
		send(inside, text(topic, fmt.Sprint("inside ", n)))
		send(outside, text(topic, fmt.Sprint("outside ", n)))
	}
	a.awaitTopic(other + "%" + topic)
	first := a.collect("g-same", topic, everything, consumer.WithNamespace(other))
	second := a.collect("g-same", topic, everything)
	first.exactly(series("inside", 10)...)
	second.exactly(series("outside", 10)...)
}

func administration(a *app) {
	topic, from, tool, ctx := named("made"), a.producer(), a.admin(), context.Background()
	// Who sets up a topic knows the brokers. Here a message id tells the address of one.
	broker := must(primitive.UnmarshalMsgID([]byte(send(from, text(named("any"), "any")).OffsetMsgID)))
	address := fmt.Sprintf("%s:%d", broker.Addr, broker.Port)
	ok(tool.CreateTopic(ctx, admin.WithTopicCreate(topic), admin.WithBrokerAddrCreate(address), admin.WithReadQueueNums(3), admin.WithWriteQueueNums(3)))
	a.awaitTopic(topic)
	queues := must(tool.FetchPublishMessageQueues(ctx, topic))
	if len(queues) != 3 {
		fail("wanted 3 queues, found %v", queues)
	}
	send(from, text(topic, "to the new topic"))
	a.collect("g-made", topic, everything).exactly("to the new topic")
	ok(tool.DeleteTopic(ctx, admin.WithTopicDelete(topic), admin.WithBrokerAddrDelete(address)))
	until(func() bool { return !known(tool, topic) }, func() any { return topic + " is still there" })
}
