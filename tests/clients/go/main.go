// A client of Kontrol, generated from proto/. See tests/clients/README.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	kontrol "kontrol/v1"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

func main() {
	flags := flag.NewFlagSet("client ping|stream|slave|pods|watch|exec", flag.ExitOnError)
	masters := flags.String("masters", "", "URLs of the masters of a tier, with commas between")
	ca := flags.String("ca", "", "certificates that masters are trusted by")
	tokenFile := flags.String("token-file", "", "file with the token")
	app := flags.String("app", "web", "of the pod")
	id := flags.String("id", "go-1", "of the pod; of exec, the pods with commas between")
	ip := flags.String("ip", "127.0.0.1", "of the pod")
	role := flags.String("role", "client", "of the pod")
	pageSize := flags.Uint("page-size", 100, "of pods")
	if len(os.Args) < 2 {
		flags.Usage()
		os.Exit(2)
	}
	_ = flags.Parse(os.Args[2:]) // It exits where something is wrong.
	tier, err := newTier(strings.Split(*masters, ","), *ca, *tokenFile)
	check(err)
	// Over at SIGTERM.
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	what, err := newPod(*app, *id, *ip, *role)
	check(err)
	switch os.Args[1] {
	case "ping":
		check(report(ctx, newKeepalives(tier, what, unary{tier}), false))
	case "stream", "slave":
		check(report(ctx, newKeepalives(tier, what, &stream{tier: tier}), os.Args[1] == "slave"))
	case "pods":
		check(pods(tier, uint32(*pageSize)))
	case "watch":
		check(watch(ctx, tier))
	case "exec":
		worst, err := execute(tier, strings.Split(*id, ","), flags.Args())
		check(err)
		os.Exit(worst)
	default:
		flags.Usage()
		os.Exit(2)
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", status.Convert(err).Message())
		os.Exit(1)
	}
}

// report reports a pod until the context is over; as a slave, it runs commands as well.
func report(ctx context.Context, keepalives *keepalives, attaches bool) error {
	if attaches {
		slave := newSlave(keepalives)
		channel, cancel := context.WithCancel(context.Background())
		go slave.run(channel)
		keepalives.run(ctx)
		slave.stop()
		defer cancel()
	} else {
		keepalives.run(ctx)
	}
	defer keepalives.summary()
	return keepalives.goodbye()
}

// pods lists the pods, page by page; a page may come from another master than the one before.
func pods(tier *tier, size uint32) error {
	count, pages := 0, 0
	request := &kontrol.ListPodsRequest{PageSize: size}
	for {
		var page *kontrol.ListPodsResponse
		err := tier.call(func(ctx context.Context, one *master) (err error) {
			page, err = one.ensemble.ListPods(ctx, request)
			return err
		})
		if err != nil {
			return err
		}
		for _, pod := range page.Pods {
			say(event{"key": pod.Key, "id": pod.Id, "seq": pod.Seq})
		}
		count, pages = count+len(page.Pods), pages+1
		// A page may have fewer than asked for: only the token tells whether it was the last.
		if request.PageToken = page.NextPageToken; request.PageToken == "" {
			say(event{"pods": count, "pages": pages})
			return nil
		}
	}
}

// watch prints what changes, and goes on behind the last revision when a master goes away.
func watch(ctx context.Context, tier *tier) error {
	history := ""
	request := &kontrol.WatchRequest{History: &history}
	known := &known{pods: map[string]uint64{}}
	for {
		one := tier.inUse()
		err := follow(ctx, one, request, known)
		if ctx.Err() != nil {
			return nil
		}
		if err != io.EOF && !elsewhere(err) {
			return err
		}
		say(event{"cut": one.url, "revision": request.Revision})
		tier.leave(one)
		pause(ctx, 100*time.Millisecond)
	}
}

// follow reads one stream to its end, and notes in the request where to go on.
func follow(ctx context.Context, one *master, request *kontrol.WatchRequest, known *known) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := one.ensemble.Watch(ctx, request)
	if err != nil {
		return err
	}
	for {
		// There is a sign of life each 5 s: whoever is silent for longer is gone.
		silent := time.AfterFunc(12*time.Second, cancel)
		message, err := stream.Recv()
		silent.Stop()
		if err != nil {
			return err
		}
		known.tell(message)
		// 0 in all but the last piece of a snapshot: cut off before that, it begins anew.
		if message.Revision > 0 {
			request.Revision = message.Revision
		}
		if message.History != nil {
			request.History = message.History
		}
	}
}

// known are the pods that a watch told of: their seqs by their keys.
type known struct {
	pods map[string]uint64
	more bool
}

// tell prints a message. Some may come again after a cut: what is known already is no news.
func (k *known) tell(message *kontrol.WatchResponse) {
	what := event{"revision": message.Revision}
	switch happened := message.Event.(type) {
	case nil: // A sign of life.
		return
	case *kontrol.WatchResponse_Snapshot_:
		// The whole truth: its first piece replaces what was known.
		if !k.more {
			k.pods = map[string]uint64{}
		}
		k.more = happened.Snapshot.More
		ids := []string{}
		for _, pod := range happened.Snapshot.Pods {
			k.pods[pod.Key] = pod.Seq
			ids = append(ids, pod.Id)
		}
		what["event"], what["pods"] = "snapshot", ids
	case *kontrol.WatchResponse_PodJoined_:
		pod := happened.PodJoined.Pod
		if seq, is := k.pods[pod.Key]; is && seq == pod.Seq {
			return
		}
		k.pods[pod.Key] = pod.Seq
		what["event"], what["id"], what["seq"] = "pod_joined", pod.Id, pod.Seq
	case *kontrol.WatchResponse_PodLeft_:
		pod := happened.PodLeft.Pod
		if _, is := k.pods[pod.Key]; !is {
			return
		}
		delete(k.pods, pod.Key)
		what["event"], what["id"], what["seq"] = "pod_left", pod.Id, pod.Seq
		what["reason"] = happened.PodLeft.Reason.String()
	default:
		what["event"] = fmt.Sprintf("%T", happened)
	}
	say(what)
}

// execute runs a command on pods, and gives the worst exit code.
func execute(tier *tier, ids, argv []string) (int, error) {
	request := &kontrol.DispatchRequest{
		Selector: &kontrol.Selector{Ids: ids},
		Command:  &kontrol.Command{Argv: argv},
		Timeout:  durationpb.New(30 * time.Second),
	}
	for {
		one := tier.inUse()
		accepted, worst, err := dispatch(one, request)
		// Before `accepted` nothing was started. Behind it, GetAction of any master tells the end.
		if err == nil || accepted || !elsewhere(err) {
			return worst, err
		}
		tier.leave(one)
		time.Sleep(100 * time.Millisecond)
	}
}

func dispatch(one *master, request *kontrol.DispatchRequest) (accepted bool, worst int, err error) {
	// No deadline: a sign of life comes each 5 s. Going away cancels what runs.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream, err := one.actions.Dispatch(ctx, request)
	if err != nil {
		return false, 0, err
	}
	for {
		message, err := stream.Recv()
		if err == io.EOF {
			return accepted, worst, nil
		}
		if err != nil {
			return accepted, worst, err
		}
		switch happened := message.Event.(type) {
		case *kontrol.DispatchResponse_Accepted_:
			accepted = true
			say(event{"accepted": happened.Accepted.ActionId})
		case *kontrol.DispatchResponse_Output_:
			name := map[kontrol.Stream]string{kontrol.Stream_STREAM_STDOUT: "stdout", kontrol.Stream_STREAM_STDERR: "stderr"}
			say(event{name[happened.Output.Stream]: string(happened.Output.Data)})
		case *kontrol.DispatchResponse_Finished:
			result := happened.Finished
			say(event{"finished": result.Id, "outcome": result.Outcome.String(), "exit_code": result.ExitCode})
			code := int(result.ExitCode)
			if code < 0 {
				code = 255
			}
			if code > worst {
				worst = code
			}
		case *kontrol.DispatchResponse_Summary:
			say(event{"targets": happened.Summary.Targets, "succeeded": happened.Summary.Succeeded})
		}
	}
}
