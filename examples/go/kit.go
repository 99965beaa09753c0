package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	rocketmq "github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/admin"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
)

var (
	nameServers = primitive.NewPassthroughResolver(strings.Split(setting("NAMESRV_ADDR", "127.0.0.1:9876"), ";"))
	patience    = seconds(setting("CHECK_WAIT_S", "90"))
	thisRun     = fmt.Sprintf("go-%d-%d", time.Now().UnixMilli(), os.Getpid())
	everything  = consumer.MessageSelector{Type: consumer.TAG, Expression: "*"}
	instances   atomic.Int32
)

func setting(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func seconds(text string) time.Duration {
	value, err := strconv.ParseFloat(text, 64)
	if err != nil || value <= 0 {
		fmt.Println("CHECK_WAIT_S is not a number of seconds:", text)
		os.Exit(1)
	}
	return time.Duration(value * float64(time.Second))
}

// named gives topics and groups names that no other run has.
func named(what string) string { return thisRun + "-" + what }

// instance keeps the clients of this process apart: with one name they would share one connection and one client id.
func instance() string { return fmt.Sprintf("%s-%d", thisRun, instances.Add(1)) }

// failure ends a check.
type failure struct{ error }

func fail(format string, values ...any) { panic(failure{fmt.Errorf(format, values...)}) }

func ok(err error) {
	if err != nil {
		panic(failure{err})
	}
}

func must[T any](value T, err error) T {
	ok(err)
	return value
}

// until waits while this process runs: time in which it was stopped does not count.
func until(condition func() bool, what func() any) {
	for waited := time.Duration(0); waited <= patience; {
		begun := time.Now()
		if condition() {
			return
		}
		time.Sleep(20 * time.Millisecond)
		waited += min(time.Since(begun), 500*time.Millisecond)
	}
	fail("not within %v: %v", patience, what())
}

func series(word string, count int) (bodies []string) {
	for n := range count {
		bodies = append(bodies, fmt.Sprintf("%s %d", word, n))
	}
	return bodies
}

// inbox keeps what one consumer got.
type inbox struct {
	lock sync.Mutex
	got  []entry
}

type entry struct {
	body  string
	queue int
	at    time.Time
	from  *primitive.MessageExt
}

func (i *inbox) put(body string, message *primitive.MessageExt) {
	i.lock.Lock()
	defer i.lock.Unlock()
	i.got = append(i.got, entry{body, message.Queue.QueueId, time.Now(), message})
}

func (i *inbox) all() []entry {
	i.lock.Lock()
	defer i.lock.Unlock()
	return slices.Clone(i.got)
}

func (i *inbox) bodies() (bodies []string) {
	for _, one := range i.all() {
		bodies = append(bodies, one.body)
	}
	return bodies
}

// exactly waits for these bodies, in any order, and a little longer for those that should not come.
func (i *inbox) exactly(wanted ...string) {
	until(func() bool { return len(i.all()) >= len(wanted) }, func() any { return fmt.Sprintf("%q of %q", i.bodies(), wanted) })
	time.Sleep(500 * time.Millisecond)
	same("bodies", sorted(i.bodies()), sorted(wanted))
}

func sorted(bodies []string) []string {
	bodies = slices.Clone(bodies)
	slices.Sort(bodies)
	return bodies
}

func same[T comparable](what string, found, wanted []T) {
	if !slices.Equal(found, wanted) {
		fail("%s: wanted %v, found %v", what, wanted, found)
	}
}

// app has the producers and consumers of one check.
type app struct {
	lock    sync.Mutex
	endings []func() error
}

func (a *app) atEnd(ending func() error) {
	a.lock.Lock()
	defer a.lock.Unlock()
	a.endings = append(a.endings, ending)
}

func (a *app) close() {
	a.lock.Lock()
	defer a.lock.Unlock()
	for _, ending := range slices.Backward(a.endings) {
		_ = ending()
	}
}

func (a *app) producer(options ...producer.Option) rocketmq.Producer {
	made := must(rocketmq.NewProducer(append([]producer.Option{
		producer.WithNsResolver(nameServers), producer.WithGroupName(named("producers")), producer.WithInstanceName(instance()), producer.WithRetry(2),
	}, options...)...))
	ok(made.Start())
	a.atEnd(made.Shutdown)
	return made
}

// send is a sync send that has to be stored; the first one to a topic makes the topic.
func send(from rocketmq.Producer, messages ...*primitive.Message) *primitive.SendResult {
	result := must(from.SendSync(context.Background(), messages...))
	if result.Status != primitive.SendOK {
		fail("status %v of a send", result.Status)
	}
	return result
}

func text(topic, body string) *primitive.Message { return primitive.NewMessage(topic, []byte(body)) }

func (a *app) admin() admin.Admin {
	made := must(admin.NewAdmin(admin.WithResolver(nameServers)))
	a.atEnd(made.Close)
	return made
}

func known(from admin.Admin, topic string) bool {
	return slices.Contains(must(from.FetchAllTopicList(context.Background())).TopicList, topic)
}

// awaitTopic waits for a topic: a consumer of one that is not there does not start.
func (a *app) awaitTopic(topic string) {
	from := a.admin()
	until(func() bool { return known(from, topic) }, func() any { return "no topic " + topic })
}

type handler func(context.Context, *primitive.MessageExt) consumer.ConsumeResult

// listen starts a push consumer of a group that is new in this run, so it begins with the first message.
func (a *app) listen(group, topic string, selector consumer.MessageSelector, handle handler, options ...consumer.Option) {
	made := must(rocketmq.NewPushConsumer(append([]consumer.Option{
		consumer.WithNsResolver(nameServers), consumer.WithGroupName(named(group)), consumer.WithInstance(instance()),
		consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset),
	}, options...)...))
	ok(made.Subscribe(topic, selector, func(ctx context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		for _, message := range messages { // One, unless WithConsumeMessageBatchMaxSize says more.
			if result := handle(ctx, message); result != consumer.ConsumeSuccess {
				return result, nil
			}
		}
		return consumer.ConsumeSuccess, nil
	}))
	ok(made.Start())
	a.atEnd(made.Shutdown)
}

// collect is a push consumer that takes everything.
func (a *app) collect(group, topic string, selector consumer.MessageSelector, options ...consumer.Option) *inbox {
	a.awaitTopic(topic)
	got := &inbox{}
	a.listen(group, topic, selector, func(_ context.Context, message *primitive.MessageExt) consumer.ConsumeResult {
		got.put(string(message.Body), message)
		return consumer.ConsumeSuccess
	}, options...)
	return got
}
