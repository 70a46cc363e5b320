// Package tier starts a member and a proxy in front of it as processes of their own, for the Go programs of this folder.
package tier

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// Tier is a member of a cluster of its own and, if there is one, its proxy.
type Tier struct {
	// Endpoint is what clients dial, HOST:PORT: the proxy, or the member without one.
	Endpoint string
	// MemberEndpoint is the member.
	MemberEndpoint string

	folder  string
	member  []string
	proxy   []string
	mutex   sync.Mutex
	running map[string]*exec.Cmd
}

// New describes a member (a program and more flags) and a proxy (a program and its flags; none: clients meet the member).
// scheme is that of client URLs; data and logs go to folder.
func New(folder, scheme string, member, proxy []string) (*Tier, error) {
	var ports [3]string
	for i := range ports {
		port, err := free()
		if err != nil {
			return nil, err
		}
		ports[i] = port
	}
	client, peer := scheme+"://"+ports[0], "http://"+ports[1]
	tier := &Tier{Endpoint: ports[0], MemberEndpoint: ports[0], folder: folder, running: map[string]*exec.Cmd{}}
	tier.member = append([]string{
		member[0], "--name=m", "--data-dir=" + filepath.Join(folder, "data"), "--unsafe-no-fsync",
		"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=m=" + peer,
	}, member[1:]...)
	if len(proxy) > 0 {
		tier.Endpoint = ports[2]
		tier.proxy = append(append([]string{}, proxy...), "--endpoints="+client, "--listen-addr="+ports[2])
	}
	return tier, nil
}

// next is where free looks next, far from where programs that run beside this one do.
var next = os.Getpid() * 16

// free is an address nobody listens on, another one for each call. It is not from the range that the kernel hands out to clients,
// so nobody takes it by accident before the process listens there.
func free() (string, error) {
	const first, count = 20_000, 10_000
	for range count {
		address := fmt.Sprintf("127.0.0.1:%d", first+next%count)
		next++
		if listener, err := net.Listen("tcp", address); err == nil {
			return address, listener.Close()
		}
	}
	return "", errors.New("no free port")
}

// StartMember starts the member, again if it ran before.
func (t *Tier) StartMember() error { return t.start("member", t.member) }

// StartProxy starts the proxy, if there is one.
func (t *Tier) StartProxy() error {
	if len(t.proxy) == 0 {
		return nil
	}
	return t.start("proxy", t.proxy)
}

// KillMember ends the member as SIGKILL does.
func (t *Tier) KillMember() { t.kill("member") }

// Stop ends both.
func (t *Tier) Stop() {
	t.kill("proxy")
	t.kill("member")
}

// Logs are the last lines of what both have written.
func (t *Tier) Logs() string {
	var all strings.Builder
	for _, name := range []string{"member", "proxy"} {
		text, err := os.ReadFile(t.log(name))
		if err != nil {
			continue
		}
		fmt.Fprintf(&all, "end of the %s's log:\n%s\n", name, text[max(0, len(text)-4000):])
	}
	return all.String()
}

func (t *Tier) log(name string) string { return filepath.Join(t.folder, name+".log") }

func (t *Tier) start(name string, command []string) error {
	log, err := os.OpenFile(t.log(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	process := exec.Command(command[0], command[1:]...)
	process.Stdout, process.Stderr = log, log
	if err := process.Start(); err != nil {
		return err
	}
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.running[name] = process
	return nil
}

func (t *Tier) kill(name string) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if process := t.running[name]; process != nil {
		// It may have ended by itself.
		_ = process.Process.Kill()
		_ = process.Wait()
		delete(t.running, name)
	}
}
