// Command kubernetes checks the storage layer of a Kubernetes API server (k8s.io/apiserver: its store, its cache of watches, its
// compactor) on a member behind a proxy. The cache answers consistent lists once its watch has progressed to the newest revision, for
// which it requests progress; etcd's own proxy passes no such request on, so there it waits three seconds and then lists from etcd.
//
// usage: kubernetes MEMBER [PROXY FLAG…]    the program of the member, and the command line of the proxy
package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/apis/example"
	examplev1 "k8s.io/apiserver/pkg/apis/example/v1"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
	"k8s.io/apiserver/pkg/storage/feature"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"watershed.test/tier"
)

const (
	resource = "/pods/"
	pods     = 200
	// How often the API server compacts; five minutes in a real one.
	compactEvery = 2 * time.Second
)

// server is what an API server has for one resource.
type server struct {
	tier *tier.Tier
	// The store, whose lists are counted, and the cache in front of it.
	store  *counted
	cached *cacher.CacheDelegator
	client *clientv3.Client
}

// counted counts the lists that reach etcd.
type counted struct {
	storage.Interface
	lists atomic.Int64
}

func (c *counted) GetList(ctx context.Context, key string, options storage.ListOptions, list runtime.Object) error {
	c.lists.Add(1)
	return c.Interface.GetList(ctx, key, options, list)
}

var checks = []tier.Check[*server]{
	{Name: "objects", Run: objects},
	{Name: "lists in pages", Run: pages},
	{Name: "consistent lists", Run: consistentLists},
	{Name: "watches", Run: watches},
	{Name: "compaction", Run: compaction},
	{Name: "restart of the member", Run: restart},
}

func main() {
	tier.Program[*server]{Name: "kubernetes", Open: newServer, Checks: checks, Timeout: 5 * time.Minute}.Main()
}

func newServer(ctx context.Context, programs *tier.Tier) (*server, func(), error) {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{programs.Endpoint}, Logger: zap.NewNop()})
	if err != nil {
		return nil, nil, err
	}
	if err := answers(ctx, client); err != nil {
		return nil, nil, err
	}
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, metav1.SchemeGroupVersion)
	for _, add := range []func(*runtime.Scheme) error{example.AddToScheme, examplev1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, nil, err
		}
	}
	codecs := serializer.NewCodecFactory(scheme)
	codec := codecs.LegacyCodec(examplev1.SchemeGroupVersion)
	group := schema.GroupResource{Resource: "pods"}
	newPod := func() runtime.Object { return &example.Pod{} }
	newList := func() runtime.Object { return &example.PodList{} }
	config := storagebackend.NewDefaultConfig("/registry", codec)
	config.Transport.ServerList = []string{"http://" + programs.Endpoint}
	config.CompactionInterval = compactEvery
	store, destroy, err := factory.Create(*config.ForResource(group), newPod, newList, resource)
	if err != nil {
		return nil, nil, err
	}
	lists := &counted{Interface: store}
	cache, err := cacher.NewCacherFromConfig(cacher.Config{
		Storage: lists, Versioner: storage.APIObjectVersioner{}, GroupResource: group,
		EventsHistoryWindow: config.EventsHistoryWindow, ResourcePrefix: resource,
		KeyFunc:      func(object runtime.Object) (string, error) { return key(object.(*example.Pod).Name), nil },
		GetAttrsFunc: func(runtime.Object) (labels.Set, fields.Set, error) { return nil, nil, nil },
		NewFunc:      newPod, NewListFunc: newList, Codec: codec,
	})
	if err != nil {
		return nil, nil, err
	}
	at := &server{tier: programs, store: lists, cached: cacher.NewCacheDelegator(cache, lists), client: client}
	stop := func() {
		at.cached.Stop()
		cache.Stop()
		destroy()
		_ = client.Close()
	}
	for !feature.DefaultFeatureSupportChecker.Supports(storage.RequestWatchProgress) || at.cached.ReadinessCheck() != nil {
		if ctx.Err() != nil {
			stop()
			return nil, nil, fmt.Errorf("the cache is not ready: %w", ctx.Err())
		}
		time.Sleep(20 * time.Millisecond)
	}
	return at, stop, nil
}

func key(name string) string { return resource + "default/" + name }

func name(number int) string { return fmt.Sprintf("pod-%04d", number) }

// answers waits until a read succeeds.
func answers(ctx context.Context, client *clientv3.Client) error {
	return tier.UntilNil(ctx, func(ctx context.Context) error {
		_, err := client.Get(ctx, "ready")
		return err
	})
}

// label writes a value into a pod, and returns what is stored.
func (s *server) label(ctx context.Context, number int, value string) (*example.Pod, error) {
	stored := &example.Pod{}
	err := s.store.GuaranteedUpdate(ctx, key(name(number)), stored, false, nil, storage.SimpleUpdate(
		func(object runtime.Object) (runtime.Object, error) {
			changed := object.(*example.Pod).DeepCopy()
			changed.Labels = map[string]string{"value": value}
			return changed, nil
		}), nil)
	return stored, err
}

func (s *server) list(ctx context.Context, from storage.Interface, version string, match metav1.ResourceVersionMatch) (*example.PodList, error) {
	list := &example.PodList{}
	return list, from.GetList(ctx, resource, storage.ListOptions{
		Recursive: true, ResourceVersion: version, ResourceVersionMatch: match, Predicate: storage.Everything,
	}, list)
}

func objects(ctx context.Context, at *server) error {
	for number := range pods + 1 {
		pod := &example.Pod{ObjectMeta: metav1.ObjectMeta{Name: name(number), Namespace: "default"}}
		if err := at.store.Create(ctx, key(pod.Name), pod, &example.Pod{}, 0); err != nil {
			return err
		}
	}
	if err := at.store.Create(ctx, key(name(0)), &example.Pod{}, nil, 0); !storage.IsExist(err) {
		return fmt.Errorf("created twice: %v", err)
	}
	deleted := &example.Pod{}
	if err := at.store.Delete(ctx, key(name(pods)), deleted, nil, storage.ValidateAllObjectFunc, nil, storage.DeleteOptions{}); err != nil {
		return err
	}
	if err := at.cached.Get(ctx, key(name(pods)), storage.GetOptions{}, &example.Pod{}); !storage.IsNotFound(err) {
		return fmt.Errorf("found after it was deleted: %v", err)
	}
	// One with a lease.
	brief := &example.Pod{ObjectMeta: metav1.ObjectMeta{Name: "brief", Namespace: "default"}}
	if err := at.store.Create(ctx, key(brief.Name), brief, nil, 2); err != nil {
		return err
	}
	for ctx.Err() == nil {
		if err := at.store.Get(ctx, key(brief.Name), storage.GetOptions{}, &example.Pod{}); storage.IsNotFound(err) {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("an object outlives its lease: %w", ctx.Err())
}

// All pages are of the revision of the first, though objects change in between.
func pages(ctx context.Context, at *server) error {
	predicate := storage.Everything
	predicate.Limit = 37
	var names []string
	first := ""
	for {
		list := &example.PodList{}
		if err := at.store.GetList(ctx, resource, storage.ListOptions{Recursive: true, Predicate: predicate}, list); err != nil {
			return err
		}
		if first == "" {
			first = list.ResourceVersion
		}
		if list.ResourceVersion != first {
			return fmt.Errorf("a page of version %s after one of %s", list.ResourceVersion, first)
		}
		for _, pod := range list.Items {
			if pod.Labels["value"] != "" {
				return fmt.Errorf("%s is newer than the first page", pod.Name)
			}
			names = append(names, pod.Name)
		}
		if list.Continue == "" {
			break
		}
		predicate.Continue = list.Continue
		if _, err := at.label(ctx, pods-1, "paged"); err != nil {
			return err
		}
	}
	if len(names) != pods || !slices.IsSorted(names) {
		return fmt.Errorf("%d pods in pages, or out of order", len(names))
	}
	return nil
}

// The cache waits three seconds for what it lacks. While the machine stands still for so long, a list may reach etcd.
const late = 2

// Each list shows the write before it, and none of them reaches etcd. Writes elsewhere move the revision of a cache that sees no event.
func consistentLists(ctx context.Context, at *server) error {
	var took []time.Duration
	before := at.store.lists.Load()
	for round := range 20 {
		written, err := at.label(ctx, round, "listed")
		if err != nil {
			return err
		}
		for range 2 {
			if _, err := at.client.Put(ctx, "/elsewhere", strconv.Itoa(round)); err != nil {
				return err
			}
		}
		begun := time.Now()
		list, err := at.list(ctx, at.cached, "", "")
		if err != nil {
			return err
		}
		took = append(took, time.Since(begun))
		if at.store.lists.Load()-before > late {
			return fmt.Errorf("round %d: the cache could not answer, and the list reached etcd after %s", round, time.Since(begun).Round(time.Millisecond))
		}
		if len(list.Items) != pods || list.Items[round].ResourceVersion != written.ResourceVersion {
			return fmt.Errorf("round %d: %d pods, version %s in place of %s", round, len(list.Items),
				list.Items[round].ResourceVersion, written.ResourceVersion)
		}
	}
	slices.Sort(took)
	fmt.Printf("  %d consistent lists of %d pods: median %s, longest %s\n", len(took), pods,
		took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	return nil
}

// follow wants the values first..last-1 of a pod, one after the other.
func follow(ctx context.Context, events watch.Interface, first, last int) error {
	defer events.Stop()
	for next := first; next < last; {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for value %d: %w", next, ctx.Err())
		case event, open := <-events.ResultChan():
			if !open {
				return fmt.Errorf("waiting for value %d: the watch ended", next)
			}
			if event.Type == watch.Bookmark {
				continue
			}
			object := event.Object
			// What several watchers get is encoded once.
			if shared, ok := object.(runtime.CacheableObject); ok {
				object = shared.GetObject()
			}
			pod, ok := object.(*example.Pod)
			if !ok || event.Type != watch.Modified {
				return fmt.Errorf("waiting for value %d: %s %v", next, event.Type, event.Object)
			}
			if pod.Labels["value"] != strconv.Itoa(next) {
				return fmt.Errorf("value %d expected, not %q", next, pod.Labels["value"])
			}
			next++
		}
	}
	return nil
}

// watched opens so many watches of a pod, through the cache and past it in turn, and returns what waits for values on all of them.
func (s *server) watched(ctx context.Context, number, watchers, last int) (func() error, error) {
	begin, err := s.list(ctx, s.store, "", "")
	if err != nil {
		return nil, err
	}
	results := make(chan error, watchers)
	var waiting sync.WaitGroup
	for index := range watchers {
		from := storage.Interface(s.cached)
		if index%10 == 9 {
			from = s.store
		}
		events, err := from.Watch(ctx, key(name(number)), storage.ListOptions{ResourceVersion: begin.ResourceVersion, Predicate: storage.Everything})
		if err != nil {
			return nil, err
		}
		waiting.Go(func() { results <- follow(ctx, events, 0, last) })
	}
	return func() error {
		waiting.Wait()
		for range watchers {
			if err := <-results; err != nil {
				return err
			}
		}
		return nil
	}, nil
}

func watches(ctx context.Context, at *server) error {
	const rounds = 50
	finished, err := at.watched(ctx, 0, 200, rounds)
	if err != nil {
		return err
	}
	for round := range rounds {
		if _, err := at.label(ctx, 0, strconv.Itoa(round)); err != nil {
			return err
		}
	}
	return finished()
}

// The compactor runs twice while pods are written, listed and watched.
func compaction(ctx context.Context, at *server) error {
	old, err := at.list(ctx, at.store, "", "")
	if err != nil {
		return err
	}
	// A list of a version that is kept.
	if _, err := at.list(ctx, at.store, old.ResourceVersion, metav1.ResourceVersionMatchExact); err != nil {
		return err
	}
	const rounds = 40
	finished, err := at.watched(ctx, 1, 20, rounds)
	if err != nil {
		return err
	}
	lists := at.store.lists.Load()
	begin := at.store.CompactRevision()
	var seen []int64
	for round := 0; round < rounds || len(seen) < 2; round++ {
		if ctx.Err() != nil {
			return fmt.Errorf("the compactor did not run: %w", ctx.Err())
		}
		if round < rounds {
			if _, err := at.label(ctx, 1, strconv.Itoa(round)); err != nil {
				return err
			}
		}
		written, err := at.label(ctx, 2, strconv.Itoa(round))
		if err != nil {
			return err
		}
		list, err := at.list(ctx, at.cached, "", "")
		if err != nil {
			return err
		}
		if list.Items[2].ResourceVersion != written.ResourceVersion {
			return fmt.Errorf("round %d: version %s in place of %s", round, list.Items[2].ResourceVersion, written.ResourceVersion)
		}
		if compacted := at.store.CompactRevision(); compacted > begin && !slices.Contains(seen, compacted) {
			seen = append(seen, compacted)
		}
	}
	if reached := at.store.lists.Load() - lists; reached > late {
		return fmt.Errorf("%d lists could not be answered from the cache", reached)
	}
	if err := finished(); err != nil {
		return err
	}
	for ctx.Err() == nil {
		_, err := at.list(ctx, at.store, old.ResourceVersion, metav1.ResourceVersionMatchExact)
		if apierrors.IsResourceExpired(err) {
			return nil
		}
		time.Sleep(200 * time.Millisecond)
	}
	return fmt.Errorf("version %s is still there: %w", old.ResourceVersion, ctx.Err())
}

// The member is killed and started again: the cache and its watches go on.
func restart(ctx context.Context, at *server) error {
	const rounds = 3
	finished, err := at.watched(ctx, 3, 20, rounds)
	if err != nil {
		return err
	}
	for round := range rounds {
		written, err := at.label(ctx, 3, strconv.Itoa(round))
		if err != nil {
			return err
		}
		at.tier.KillMember()
		if err := at.tier.StartMember(); err != nil {
			return err
		}
		if err := answers(ctx, at.client); err != nil {
			return err
		}
		list, err := at.list(ctx, at.cached, "", "")
		if err != nil {
			return err
		}
		if list.Items[3].ResourceVersion != written.ResourceVersion {
			return fmt.Errorf("round %d: version %s in place of %s", round, list.Items[3].ResourceVersion, written.ResourceVersion)
		}
	}
	return finished()
}
