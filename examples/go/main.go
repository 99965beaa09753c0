// A sample application with rocketmq-client-go. It sends and consumes in every way that the client has and checks what
// came: one line for each, exit code 1 if one of them failed. Words as arguments run only the checks with them in the name.
package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/apache/rocketmq-client-go/v2/rlog"
)

type check struct {
	name string
	run  func(*app)
}

var checks = []check{
	{"sync, async and oneway sends arrive", sends},
	{"a batch arrives whole", batch},
	{"messages of one key stay in order, also after a refusal", orderly},
	{"a delayed message comes when it is due", delayed},
	{"transactions commit, roll back and are checked back", transactions},
	{"consumers of a group share the queues", sharing},
	{"every broadcast consumer gets every message", broadcast},
	{"a consumer selects by tag", tags},
	{"a consumer selects by SQL92", sql92},
	{"a refused message comes again and then is a dead letter", deadLetters},
	{"a pull consumer polls and goes on after its last commit", pull},
	{"a request gets its reply", requests},
	{"a namespace keeps topics of one name apart", namespaces},
	{"the admin makes a topic and deletes it", administration},
}

func main() {
	rlog.SetLogLevel("error")
	wanted := func(one check) bool {
		for _, word := range os.Args[1:] {
			if strings.Contains(one.name, word) {
				return true
			}
		}
		return len(os.Args) == 1
	}
	// All at once: some of them wait for the client, which looks for new routes every 30 seconds.
	verdicts, running, failed := make(chan bool), 0, 0
	for _, one := range checks {
		if wanted(one) {
			running++
			go func() { verdicts <- passes(one) }()
		}
	}
	for range running {
		if !<-verdicts {
			failed++
		}
	}
	if failed > 0 || running == 0 {
		fmt.Printf("%d of %d checks failed\n", failed, running)
		os.Exit(1)
	}
}

// passes runs a check and prints its line. A check that does not end by itself has failed too.
func passes(one check) bool {
	begun, end := time.Now(), make(chan error, 1)
	go func() { end <- try(one.run) }()
	var problem error
	select {
	case problem = <-end:
	case <-time.After(4 * patience):
		problem = fmt.Errorf("did not end within %v", 4*patience)
	}
	if problem != nil {
		fmt.Printf("FAILED  go: %s: %v\n", one.name, problem)
	} else {
		fmt.Printf("passed  go: %s, %.1f s\n", one.name, time.Since(begun).Seconds())
	}
	return problem == nil
}

func try(run func(*app)) (problem error) {
	a := &app{}
	defer func() {
		switch found := recover().(type) {
		case nil:
		case failure:
			problem = found
		default:
			problem = fmt.Errorf("%v", found)
			debug.PrintStack()
		}
		a.close()
	}()
	run(a)
	return nil
}
