import static java.nio.charset.StandardCharsets.UTF_8;

import io.etcd.jetcd.Auth;
import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.ClientBuilder;
import io.etcd.jetcd.KV;
import io.etcd.jetcd.Lease;
import io.etcd.jetcd.Watch;
import io.etcd.jetcd.auth.Permission;
import io.etcd.jetcd.election.CampaignResponse;
import io.etcd.jetcd.lease.LeaseKeepAliveResponse;
import io.etcd.jetcd.op.Cmp;
import io.etcd.jetcd.op.CmpTarget;
import io.etcd.jetcd.op.Op;
import io.etcd.jetcd.options.DeleteOption;
import io.etcd.jetcd.options.GetOption;
import io.etcd.jetcd.options.LeaseOption;
import io.etcd.jetcd.options.PutOption;
import io.etcd.jetcd.options.WatchOption;
import io.etcd.jetcd.support.CloseableClient;
import io.etcd.jetcd.watch.WatchEvent;
import io.etcd.jetcd.watch.WatchResponse;
import io.grpc.stub.StreamObserver;
import java.io.File;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/**
 * Checks a store with jetcd over TLS as a user: keys, transactions, watches, leases, locks, elections, permissions, tokens that
 * expire.
 *
 * <p>usage: Checks ENDPOINT AUTHORITY [CHECK]    all by default; all but CHECK for -CHECK
 */
public final class Checks {
    /** What clients.sh has made: root, and app, who may write the keys below jetcd/. */
    private static final String PASSWORD = "a password";

    private static final long TOKEN_TTL_MS = 3000;
    private static final String BASE = "jetcd/" + ProcessHandle.current().pid() + "/";

    private static String endpoint;
    private static File authority;
    private static String wanted;
    private static boolean failed;

    private interface Check {
        void run() throws Exception;
    }

    public static void main(String[] args) throws Exception {
        if (args.length < 2) {
            System.err.println("usage: Checks ENDPOINT AUTHORITY [CHECK]");
            System.exit(2);
        }
        endpoint = args[0];
        authority = new File(args[1]);
        wanted = args.length > 2 ? args[2] : "";
        try (Client client = as("app", PASSWORD)) {
            check("kv", () -> keysAndValues(client.getKVClient()));
            check("txn", () -> transactions(client.getKVClient()));
            check("watch", () -> watches(client));
            check("lease", () -> leases(client));
            check("lock", () -> lock(client));
            check("election", () -> election(client));
            check("permissions", () -> permissions(client));
        }
        check("users and roles", Checks::usersAndRoles);
        check("expired token", Checks::expiredToken);
        // Threads of the library may go on.
        System.exit(failed ? 1 : 0);
    }

    private static void check(String name, Check check) {
        boolean skipped = wanted.startsWith("-") ? wanted.equals("-" + name) : !wanted.isEmpty() && !wanted.equals(name);
        if (skipped) {
            return;
        }
        try {
            check.run();
            System.out.println("ok " + name);
        } catch (Throwable error) {
            failed = true;
            System.out.println("FAILED " + name + ": " + error);
            error.printStackTrace(System.out);
        }
    }

    private static Client as(String user, String password) throws Exception {
        ClientBuilder builder = Client.builder().endpoints(endpoint).sslContext(tls -> tls.trustManager(authority));
        if (user != null) {
            builder.user(bytes(user)).password(bytes(password));
        }
        return builder.build();
    }

    private static ByteSequence bytes(String text) {
        return ByteSequence.from(text, UTF_8);
    }

    private static ByteSequence key(String name) {
        return bytes(BASE + name);
    }

    private static <T> T got(CompletableFuture<T> future) throws Exception {
        return future.get(60, TimeUnit.SECONDS);
    }

    private static void expect(String what, Object got, Object want) {
        if (!want.equals(got)) {
            throw new AssertionError(what + ": got " + got + ", want " + want);
        }
    }

    private static void refused(String what, CompletableFuture<?> future, String text) throws Exception {
        try {
            future.get(60, TimeUnit.SECONDS);
        } catch (ExecutionException error) {
            for (Throwable cause = error; cause != null; cause = cause.getCause()) {
                if (String.valueOf(cause.getMessage()).contains(text)) {
                    return;
                }
            }
            throw new AssertionError(what + ": got " + error.getCause() + ", want " + text);
        }
        throw new AssertionError(what + " was allowed");
    }

    private static void keysAndValues(KV kv) throws Exception {
        long first = 0;
        for (int i = 0; i < 5; i++) {
            long revision = got(kv.put(key("kv/" + i), bytes(String.valueOf(4 - i)))).getHeader().getRevision();
            first = i == 0 ? revision : first;
        }
        GetOption sorted = GetOption.builder().isPrefix(true).withSortField(GetOption.SortTarget.VALUE)
            .withSortOrder(GetOption.SortOrder.ASCEND).withLimit(2).build();
        var answer = got(kv.get(key("kv/"), sorted));
        expect("count", answer.getCount(), 5L);
        expect("more", answer.isMore(), true);
        expect("first by value", answer.getKvs().get(0).getKey(), key("kv/4"));
        GetOption old = GetOption.builder().isPrefix(true).withRevision(first).withSerializable(true).build();
        expect("keys at the first revision", got(kv.get(key("kv/"), old)).getKvs().size(), 1);
        DeleteOption all = DeleteOption.builder().isPrefix(true).withPrevKV(true).build();
        var deleted = got(kv.delete(key("kv/"), all));
        expect("deleted", deleted.getDeleted(), 5L);
        expect("previous pairs", deleted.getPrevKvs().size(), 5);
    }

    private static void transactions(KV kv) throws Exception {
        ByteSequence key = key("txn");
        for (boolean wins : new boolean[] {true, false}) {
            var answer = got(kv.txn().If(new Cmp(key, Cmp.Op.EQUAL, CmpTarget.version(0)))
                .Then(Op.put(key, bytes("1"), PutOption.DEFAULT)).Else(Op.get(key, GetOption.DEFAULT)).commit());
            expect("succeeded", answer.isSucceeded(), wins);
            if (!wins) {
                expect("read", answer.getGetResponses().get(0).getKvs().get(0).getValue(), bytes("1"));
            }
        }
    }

    private static void watches(Client client) throws Exception {
        KV kv = client.getKVClient();
        long start = got(kv.put(key("watch/0"), bytes("past"))).getHeader().getRevision();
        BlockingQueue<Object> answers = new LinkedBlockingQueue<>();
        WatchOption option = WatchOption.builder().isPrefix(true).withRevision(start).withPrevKV(true).build();
        Watch.Listener listener = Watch.listener(answers::add, answers::add);
        try (Watch.Watcher watcher = client.getWatchClient().watch(key("watch/"), option, listener)) {
            for (int i = 1; i < 50; i++) {
                got(kv.put(key("watch/" + i % 3), bytes(String.valueOf(i))));
            }
            var deleted = got(kv.delete(key("watch/"), DeleteOption.builder().isPrefix(true).build()));
            List<WatchEvent> events = new ArrayList<>();
            while (events.size() < 53) {
                Object answer = answers.poll(60, TimeUnit.SECONDS);
                if (!(answer instanceof WatchResponse)) {
                    throw new AssertionError("after " + events.size() + " events: " + answer);
                }
                events.addAll(((WatchResponse) answer).getEvents());
            }
            expect("events", events.size(), 53);
            expect("last revision", events.get(52).getKeyValue().getModRevision(), deleted.getHeader().getRevision());
            long deletes = events.stream().filter(event -> event.getEventType() == WatchEvent.EventType.DELETE).count();
            expect("deletes", deletes, 3L);
        }
    }

    private static void leases(Client client) throws Exception {
        Lease leases = client.getLeaseClient();
        KV kv = client.getKVClient();
        long id = got(leases.grant(5)).getID();
        got(kv.put(key("lease"), bytes(""), PutOption.builder().withLeaseId(id).build()));
        BlockingQueue<Object> answers = new LinkedBlockingQueue<>();
        StreamObserver<LeaseKeepAliveResponse> observer = new StreamObserver<>() {
            @Override
            public void onNext(LeaseKeepAliveResponse answer) {
                answers.add(answer.getTTL());
            }

            @Override
            public void onError(Throwable error) {
                answers.add(error);
            }

            @Override
            public void onCompleted() {
                answers.add("completed");
            }
        };
        try (CloseableClient alive = leases.keepAlive(id, observer)) {
            long begun = System.nanoTime();
            while (System.nanoTime() - begun < 8_000_000_000L) {
                expect("ttl", answers.poll(60, TimeUnit.SECONDS), 5L);
            }
        }
        var left = got(leases.timeToLive(id, LeaseOption.builder().withAttachedKeys().build()));
        expect("granted", left.getGrantedTTL(), 5L);
        expect("keys", left.getKeys(), List.of(key("lease")));
        got(leases.revoke(id));
        expect("keys after the revoke", got(kv.get(key("lease"))).getCount(), 0L);
    }

    private static void lock(Client client) throws Exception {
        long[] ids = new long[2];
        for (int i = 0; i < 2; i++) {
            ids[i] = got(client.getLeaseClient().grant(60)).getID();
        }
        ByteSequence held = got(client.getLockClient().lock(key("lock"), ids[0])).getKey();
        var second = client.getLockClient().lock(key("lock"), ids[1]);
        // It waits behind the first.
        GetOption prefix = GetOption.builder().isPrefix(true).build();
        while (got(client.getKVClient().get(key("lock"), prefix)).getCount() < 2) {
            Thread.onSpinWait();
        }
        expect("the second has it", second.isDone(), false);
        got(client.getLockClient().unlock(held));
        got(client.getLockClient().unlock(got(second).getKey()));
        for (long id : ids) {
            got(client.getLeaseClient().revoke(id));
        }
    }

    private static void election(Client client) throws Exception {
        var elections = client.getElectionClient();
        long one = got(client.getLeaseClient().grant(60)).getID();
        long two = got(client.getLeaseClient().grant(60)).getID();
        CampaignResponse won = got(elections.campaign(key("election"), one, bytes("one")));
        expect("leader", got(elections.leader(key("election"))).getKv().getValue(), bytes("one"));
        got(elections.proclaim(won.getLeader(), bytes("uno")));
        expect("proclaimed", got(elections.leader(key("election"))).getKv().getValue(), bytes("uno"));
        var next = elections.campaign(key("election"), two, bytes("two"));
        got(elections.resign(won.getLeader()));
        CampaignResponse second = got(next);
        expect("next leader", got(elections.leader(key("election"))).getKv().getValue(), bytes("two"));
        got(elections.resign(second.getLeader()));
    }

    private static void permissions(Client client) throws Exception {
        ByteSequence outside = bytes("elsewhere/key");
        KV kv = client.getKVClient();
        String denied = "permission denied";
        refused("get", kv.get(outside), denied);
        refused("put", kv.put(outside, bytes("")), denied);
        refused("txn", kv.txn().Then(Op.put(outside, bytes(""), PutOption.DEFAULT)).commit(), denied);
        refused("user list", client.getAuthClient().userList(), denied);
        try (Client wrong = as("app", "another password")) {
            refused("wrong password", wrong.getKVClient().get(key("kv")), "invalid user ID or password");
        }
        try (Client anonymous = as(null, null)) {
            refused("without a user", anonymous.getKVClient().get(key("kv")), "user name is empty");
        }
        BlockingQueue<Object> answers = new LinkedBlockingQueue<>();
        try (Watch.Watcher watcher = client.getWatchClient().watch(outside, Watch.listener(answers::add, answers::add))) {
            String answer = String.valueOf(answers.poll(60, TimeUnit.SECONDS));
            expect("the reason of a refused watch: " + answer, answer.contains(denied), true);
        }
    }

    private static void usersAndRoles() throws Exception {
        String name = "jetcd-" + ProcessHandle.current().pid();
        try (Client root = as("root", PASSWORD)) {
            Auth auth = root.getAuthClient();
            got(auth.userAdd(bytes(name), bytes("old")));
            got(auth.roleAdd(bytes(name)));
            got(auth.roleGrantPermission(bytes(name), key(""), key("~"), Permission.Type.READWRITE));
            got(auth.userGrantRole(bytes(name), bytes(name)));
            expect("roles", got(auth.userGet(bytes(name))).getRoles(), List.of(name));
            expect("permissions", got(auth.roleGet(bytes(name))).getPermissions().size(), 1);
            try (Client client = as(name, "old")) {
                got(client.getKVClient().put(key("users"), bytes("1")));
                // Users change under its token: it logs in again by itself.
                got(auth.roleAdd(bytes(name + "-other")));
                got(client.getKVClient().put(key("users"), bytes("2")));
            }
            got(auth.userChangePassword(bytes(name), bytes("new")));
            try (Client client = as(name, "new")) {
                expect("read", got(client.getKVClient().get(key("users"))).getKvs().get(0).getValue(), bytes("2"));
                got(auth.userRevokeRole(bytes(name), bytes(name)));
                refused("without its role", client.getKVClient().get(key("users")), "permission denied");
            }
            got(auth.userDelete(bytes(name)));
            got(auth.roleDelete(bytes(name)));
            got(auth.roleDelete(bytes(name + "-other")));
        }
    }

    private static void expiredToken() throws Exception {
        try (Client client = as("app", PASSWORD)) {
            got(client.getKVClient().put(key("token"), bytes("1")));
            BlockingQueue<Object> answers = new LinkedBlockingQueue<>();
            try (Watch.Watcher watcher = client.getWatchClient().watch(key("token"), Watch.listener(answers::add, answers::add))) {
                for (String value : List.of("2", "3")) {
                    // A token that nobody uses ends; this is the time it takes.
                    Thread.sleep(TOKEN_TTL_MS + 2000);
                    got(client.getKVClient().put(key("token"), bytes(value)));
                    Object answer = answers.poll(60, TimeUnit.SECONDS);
                    expect("an event: " + answer, answer instanceof WatchResponse, true);
                }
            }
        }
    }
}
