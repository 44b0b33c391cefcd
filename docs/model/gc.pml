/* Garbage collection: hide, wait, purge, restore. One blob, two registry processes, two partitions, two jobs.
 *
 * Route: registry -> memory -> partition -> the table <- reconcile, job, restorer; the steps are listed at the end.
 * Invariants: what is linked has its bytes, visible or restorable; at rest it is visible.
 * Not here: clocks, graces, rates, tokens, Baleen's mounts. Time is an order of steps: "before t_h" is a bit.
 * README.md says what stands for what, and why what is left out may be.
 *
 *   -DUNVERSIONED           the other kind of bucket
 *   -DREQUESTS= -DCRASHES= -DHIDES= -DJOBS=   how much may happen
 *   -DDROP=n [-DHALF=1|2]   without rule n of the design's eight (2: without every source, or every partition)
 *   -DWITHOUT=n             without one of the finer rules 11 to 17 (see README.md)
 *   -DUNMANAGED             process 1 is an unmanaged registry: it sends nothing, and is listed (rule 16)
 *   -DSHOWN                 once somebody who is not Baleen shows a hidden blob (rule 17)
 *   -DLOSSY=1|2, -DREPEAT, -DRETRY   events that are never sent, repeated late; deletes that are sent twice
 *   -DRELIST, -DLOOK        purge also waits for listings; a removal is believed only after a look
 *   -DBYTES_ONLY            only the first invariant
 *   -DREACH=n               a place that must be reachable
 */

#ifndef DROP
#define DROP 0
#endif
#ifndef HALF
#define HALF 0
#endif
#ifndef WITHOUT
#define WITHOUT 0
#endif
#ifndef LOSSY
#define LOSSY 0
#endif
#ifndef REQUESTS
#define REQUESTS 3
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef HIDES
#define HIDES 2
#endif
#ifndef JOBS
#define JOBS 2
#endif

/* ---- storage ---- */

byte link[2];                   /* by repository; 2: linked, though the client was told 500 (LOSSY) */

#ifdef UNVERSIONED
bit live = 1;                   /* blobs/.../data */
byte copies;                    /* in quarantine, a bit for each hide id */
byte dropping;                  /* a hide that was undone, whose copy is to go */
#if DROP == 4
#define COPY(id) 1              /* one key for all hides */
#else
#define COPY(id) (1 << (id))
#endif
#define VISIBLE (live)
#ifdef SHOWN
#define BYTES (live || (st != NONE && !DOOMED(0) && !DOOMED(1) && (copies & COPY(hide))))
#define DOOMED(j) (at[j] == SURE && mine[j] == hide)
#else
#define BYTES (live || (st != NONE && st != PURGE && (copies & COPY(hide))))
#endif
#else
/* Versions and markers share a sequence: each is a bit, the newest the highest. */
short ver = 1, mrk, next = 2;
short rec[HIDES + 1];           /* what a hide recorded: the versions below its marker */
#define VISIBLE (ver > mrk)
#ifdef SHOWN
short own;                      /* the marker of the hide that took effect */
#define BYTES (ver & ~DOOMED(0) & ~DOOMED(1))
#define DOOMED(j) (at[j] == SURE -> rec[mine[j]] : 0)
#else
#define BYTES (st == PURGE -> (ver & ~rec[hide]) : ver)
#endif
#endif

/* The delete that hides, by job: it may be sent and may land while it is armed; a landing is answered. */
bit armed[2], answered[2];
byte sent[2];
#ifndef UNVERSIONED
short marker[2];
#endif

/* ---- registry processes, which take each other's place at two addresses ---- */

#define IDLE 0
#define SEEN 1                  /* the request has seen the blob, or brought it: its link is next */
#define LINKED 2                /* its event is next */
#define UNLINKED 3
#define ADOPTING 4              /* LOSSY: an index that lists what is linked */
byte doing[2];                  /* a process, with the one request under way */
bit repo[2];                    /* that request's repository */
bit old[2];                     /* it started before t_h */
byte late[2];                   /* a dead process's last link write, under way to storage: repository + 1 */
byte requests = REQUESTS, crashes = CRASHES;
#if LOSSY
bit lossy = 1;                  /* one event is never sent */
#endif

/* An event by its repository and kind; a probe that comes back as one; a watermark by its source. */
#define PUSHED(r) (r)
#define DELETED(r) (2 + (r))
#define ECHO 4
#define MARK0 4
#define MARK1 5
chan memory[2] = [REQUESTS + 1] of { byte };    /* by process, and lost with it */
chan part[2] = [REQUESTS + 2] of { byte };      /* the log; an event's partition is its repository */
#ifdef REPEAT
byte again;                     /* a second copy of an event, under way to the log: event + 1 */
bit repeats = 1;
#endif

/* ---- database ---- */

bit ref[2], known[2];           /* by repository: it holds the blob; it has held the blob */

#define NONE 0
#define INTENT 1                /* a hide is under way */
#define HIDDEN 2                /* it took effect; t_h is read */
#define RESTORE 3               /* a reference came, or the hide is undone */
#define PURGE 4
byte st, hide;                  /* the state, and the id of the last hide */
bit touched;                    /* a reference came since the decision: unreferenced since another time */
bit lease;                      /* whose it is: fences every write of a job */
bit restoring, final;           /* the restorer has brought it back; and no delete could land before that */
bit naps = 1;                   /* one restorer may fall asleep */
short noted;                    /* what a sleeping restorer is going to do */

#define TOP 0
#define DECIDED 1               /* found unreferenced */
#define LOOKED_0 2              /* and its link in repository 0 absent, if that has ever held it */
#define LOOKED_1 3
#define INTENDED 4              /* the intent is written */
#define COPIED 5
#define ASKED 6                 /* the delete was sent */
#define MAY_PURGE 7
#define PURGED 8
#define SURE 9                  /* SHOWN: the look has found the blob concealed; the delete lands next */
#define SURE_OF_IT (at[0] == SURE || at[1] == SURE)
byte at[2], mine[2];            /* a job's step, and the hide that it is at */

#if DROP == 1
#define TH (st == INTENT || st == HIDDEN)
#else
#define TH (st == HIDDEN)       /* t_h of the current hide is read and of use */
#endif
byte wm[2];                     /* W(source, partition) >= t_h + R: a bit for each partition */
bit probed[2], told[2];         /* a probe was sent after t_h + R; its watermarks are in the log */
byte dead[2];                   /* a process died: 1 not looked at, 2 a listing has begun that will have seen all it left */
bit owed[2];                    /* one died before it had told all up to t_h + R */
byte listing[2], found[2];      /* a reconcile: 1 one repository is listed, 2 both; the links that were there */
#ifdef SHOWN
bit shows = 1;                  /* somebody may show the blob, once */
#endif
#ifdef UNMANAGED
#define SENDS(s) (s == 0)       /* events, and echoes of probes */
#else
#define SENDS(s) true
#endif
#if defined(RELIST) || defined(UNMANAGED)
byte listed[2];                 /* a listing begun after t_h + R: 1 under way, 2 done */
#endif

byte x;                         /* a record in hand */
byte bytes_lost, stays_hidden, got_there;   /* never true: names for failed assertions to show */

/* ---- watermarks ---- */

#if DROP == 3
#define ENDED(s) true
#else
#define ENDED(s) (!old[s])
#endif

inline clear_t_h() {
    old[0] = 0; old[1] = 0; wm[0] = 0; wm[1] = 0; owed[0] = 0; owed[1] = 0;
    probed[0] = 0; probed[1] = 0; told[0] = 0; told[1] = 0;
#if defined(RELIST) || defined(UNMANAGED)
    listed[0] = 0; listed[1] = 0;
#endif
    /* What still comes back was asked before the next t_h and proves nothing: it may as well be gone. */
    do
    :: memory[0]??[ECHO] -> memory[0]??ECHO
    :: memory[1]??[ECHO] -> memory[1]??ECHO
    :: part[0]??[MARK0] -> part[0]??MARK0
    :: part[0]??[MARK1] -> part[0]??MARK1
    :: part[1]??[MARK0] -> part[1]??MARK0
    :: part[1]??[MARK1] -> part[1]??MARK1
    :: else -> break
    od
}
inline read_t_h() {
    clear_t_h();
    old[0] = (doing[0] != IDLE); old[1] = (doing[1] != IDLE);
    owed[0] = (dead[0] != 0); owed[1] = (dead[1] != 0)
}

/* ---- the table ---- */

#define HOLDS(j) (lease == j && (j == 0 || JOBS > 1))
#define DECIDING(j) (at[j] >= DECIDED && at[j] <= LOOKED_1)
inline restore() {
    if
#if WITHOUT != 11
    :: st == INTENT -> clear_t_h(); st = RESTORE
#endif
    :: st == HIDDEN -> clear_t_h(); st = RESTORE
    :: else
    fi
}
inline add(r) { ref[r] = 1; known[r] = 1; touched = (DECIDING(0) || DECIDING(1)); restore() }
inline remove(r) {
#ifdef LOOK
    ref[r] = (ref[r] && link[r])
#else
    ref[r] = 0
#endif
}
inline apply(r) {
    part[r]?x;
    if
    :: x == PUSHED(r) -> add(r)
    :: x == DELETED(r) -> remove(r)
    :: x >= MARK0 -> wm[x - MARK0] = wm[x - MARK0] | (1 << r)
    fi
}

/* ---- registry ---- */

/* Processes are alike, and so are repositories that nothing holds: the first that acts is the first. */
#ifdef UNMANAGED
#define FREE(s, r) (requests > 0 && doing[s] == IDLE && s == r)     /* each has its own repository, and they differ */
#else
#define FIRST(s) (s == 0 || requests < REQUESTS)
#define FREE(s, r) (requests > 0 && doing[s] == IDLE && FIRST(s) && (r == 0 || requests < REQUESTS || known[0]))
#endif

inline begin(s, r, next_step) { requests--; doing[s] = next_step; repo[s] = r }
inline upload(s, r) {
    begin(s, r, SEEN);
#ifdef UNVERSIONED
    live = 1
#else
    ver = ver | next; next = next << 1
#endif
}
inline end(s) { doing[s] = IDLE; repo[s] = 0; old[s] = 0 }
inline unlink(s, r) { begin(s, r, UNLINKED); link[r] = 0 }
inline deliver(s) {
    memory[s]?x;
    if
    :: x != ECHO -> part[x & 1]!x
    :: x == ECHO -> told[s] = 1; part[0]!(MARK0 + s); part[1]!(MARK0 + s)
    fi
}
#define MAY_DIE(s) (crashes > 0 && (doing[s] != IDLE || nempty(memory[s])) && !(doing[s] == SEEN && late[s]))
inline die(s) {
    crashes--;
    late[s] = (doing[s] == SEEN -> repo[s] + 1 : late[s]);
    doing[s] = IDLE; repo[s] = 0; old[s] = 0;
    do
    :: nempty(memory[s]) -> memory[s]?x
    :: empty(memory[s]) -> break
    od;
    dead[s] = SENDS(s); owed[s] = (owed[s] || (TH && !told[s] && SENDS(s))); probed[s] = told[s]
}

/* ---- reconcile ---- */

#if DROP == 7
#define LANDED(s) true
#else
#define LANDED(s) (!late[s])
#endif
#ifdef UNMANAGED
#define MAY_LIST(s) (s == 1)                                        /* each run lists it */
#if WITHOUT == 16 && HALF == 1
#define COUNTS(s) (TH && s == 1)                                    /* begun after t_h, and not R later */
#else
#define COUNTS(s) (TH && s == 1 && !old[0] && !old[1] && !late[1])
#endif
#elif defined(RELIST)
#define COUNTS(s) MAY_LIST(s)
#define MAY_LIST(s) (TH && !listed[s] && !old[0] && !old[1] && !late[0] && !late[1])
#else
#define MAY_LIST(s) false
#endif
inline list(s) {
    listing[s] = 1; found[s] = (link[0] -> 1 : 0);
#if defined(RELIST) || defined(UNMANAGED)
    listed[s] = (COUNTS(s) -> 1 : listed[s]);
#endif
    dead[s] = (dead[s] && LANDED(s) -> 2 : dead[s])
}
inline compare(r, there) {
    if
    :: there -> add(r)
    :: else -> ref[r] = (ref[r] && link[r])     /* an absence is looked up, with no other writer of facts at work */
    fi
}
inline settle(s) {
    listing[s] = 0;
    if
    :: dead[s] == 2 -> dead[s] = 0; owed[s] = 0
    :: else
    fi;
#if defined(RELIST) || defined(UNMANAGED)
    listed[s] = (listed[s] -> 2 : 0);
#endif
#ifdef UNMANAGED
    if
    :: s == 0 -> compare(0, found[s] & 1)
    :: else -> compare(1, found[s] & 2)
    fi;
#else
    compare(0, found[s] & 1); compare(1, found[s] & 2);
#endif
    found[s] = 0
}

/* ---- job ---- */

#define UNREFERENCED (!ref[0] && !ref[1])
#if DROP == 5
#define ABSENT(r) true
#else
#define ABSENT(r) (!known[r] || !link[r])
#endif
#if WITHOUT == 13
#define UNTOUCHED true
#else
#define UNTOUCHED (!touched)
#endif
#if WITHOUT == 12
#define SOLE(j) true
#else
#define SOLE(j) (!armed[1 - j] && sent[j] == 0)     /* no delete of this hide can land any more */
#endif

#if DROP == 6
#define REPORTED(s, parts) ((wm[s] & (parts)) == (parts))
#else
#define REPORTED(s, parts) ((wm[s] & (parts)) == (parts) && !owed[s])
#endif
#ifdef UNMANAGED
#define ALL_REPORTED REPORTED(0, 3)
#elif DROP == 2 && HALF == 1
#define ALL_REPORTED REPORTED(0, 3)                         /* not every source */
#elif DROP == 2
#define ALL_REPORTED (REPORTED(0, 1) && REPORTED(1, 1))     /* not every partition */
#else
#define ALL_REPORTED (REPORTED(0, 3) && REPORTED(1, 3))
#endif
#if defined(UNMANAGED) && (WITHOUT != 16 || HALF == 1)
#define ALL_LISTED (listed[1] == 2)
#elif defined(RELIST)
#define ALL_LISTED (listed[0] == 2 && listed[1] == 2)
#else
#define ALL_LISTED true
#endif
#define MAY_PURGE_NOW (st == HIDDEN && UNREFERENCED && ALL_REPORTED && ALL_LISTED)

inline go(j, step, id) { at[j] = step; mine[j] = id }
inline intend(j) {
    if
    :: st == NONE && UNREFERENCED && UNTOUCHED ->
        st = INTENT; hide++; armed[j] = 1; go(j, INTENDED, hide);
#if DROP == 1
        read_t_h()
#endif
    :: else -> at[j] = TOP
    fi;
    touched = 0
}
inline give_up(j) { at[j] = TOP; touched = 0 }
#ifdef UNVERSIONED
inline set_aside(j) { copies = copies | (live -> COPY(mine[j]) : 0); at[j] = COPIED }
#else
inline set_aside(j) { at[j] = COPIED }
#endif
/* Once its time is over, storage would refuse it. */
inline ask(j) {
    if
    :: armed[j] -> sent[j] = 1; answered[j] = 0; at[j] = ASKED
    :: else -> go(j, TOP, 0)
    fi
}
inline land(j) {
    sent[j]--; answered[j] = 1;
#ifdef UNVERSIONED
    live = 0
#else
    if
    :: VISIBLE -> mrk = mrk | next; next = next << 1
    :: else                                     /* on a marker, a marker changes nothing */
    fi;
    marker[j] = next >> 1
#endif
}
inline lapse(j) { armed[j] = 0; sent[j] = 0 }
inline disarm(j) {
    armed[j] = (sent[j] != 0); answered[j] = 0;
#ifndef UNVERSIONED
    marker[j] = 0;
#endif
    go(j, TOP, 0)
}
inline record(j) {
#ifndef UNVERSIONED
    rec[hide] = ver & (marker[j] - 1);
#ifdef SHOWN
    own = marker[j];
#endif
#endif
    disarm(j);
    st = HIDDEN;
#if DROP != 1
    read_t_h()
#endif
}
inline purge(j) {
#ifdef UNVERSIONED
    copies = copies & ~COPY(mine[j]);
#elif DROP == 4
    ver = 0;                                    /* whatever is there by now */
#else
    ver = ver & ~rec[mine[j]];
#endif
    at[j] = PURGED
}
#ifdef SHOWN
#if WITHOUT == 17
#define CONCEALED(j) true
#elif defined(UNVERSIONED)
#define CONCEALED(j) (!live)
#else
#define CONCEALED(j) (!(ver & rec[mine[j]]) || (mrk & own) && mrk < (own << 1) && !(VISIBLE))
#endif
/* The permit comes after the look, and demands the lease. What is not concealed is given back. */
inline look(j) {
    if
    :: HOLDS(j) && CONCEALED(j) -> at[j] = SURE
    :: else ->
        st = (HOLDS(j) && st == PURGE -> RESTORE : st);
        go(j, TOP, 0)
    fi
}
inline reveal() {
    shows = 0;
#ifdef UNVERSIONED
    live = 1
#else
    mrk = 0
#endif
}
#ifdef UNVERSIONED
#define MAY_SHOW (!live && st != NONE && (copies & COPY(hide)))
#else
#define MAY_SHOW (ver && !(VISIBLE))
#endif
#endif
/* The first sleeps for ever, or wakes: only what it does in storage can still matter. */
inline take_over() {
    lease = 1; touched = 0; answered[0] = 0;
#ifndef UNVERSIONED
    marker[0] = 0;
#endif
    if
    :: at[0] != INTENDED && at[0] != COPIED && at[0] != MAY_PURGE && at[0] != SURE -> go(0, TOP, 0)
    :: else
    fi
}

/* ---- restorer ---- */

#ifdef UNVERSIONED
#define MAY_CLOSE (!dropping)
#else
#define MAY_CLOSE true
#endif
#if DROP == 8
#define HARMLESS true
#else
#define HARMLESS (!armed[0] && !armed[1])
#endif
inline bring_back() {
#ifdef UNVERSIONED
    live = (live || (copies & COPY(hide)))
#else
    mrk = 0
#endif
}
inline close() {
#ifdef UNVERSIONED
    dropping = hide;
#endif
    final = 0; restoring = 0; st = NONE
}
/* Another restorer, thought dead, that was about to bring back: it deletes the markers that it has seen. */
inline nap() {
    naps = 0;
#ifdef UNVERSIONED
    noted = hide
#else
    noted = mrk
#endif
}
inline wake() {
#ifdef UNVERSIONED
    live = (live || (copies & COPY(noted)));
#elif WITHOUT == 15
    mrk = 0;                                    /* the markers that are there by now */
#else
    mrk = mrk & ~noted;
#endif
    noted = 0
}

/* ---- invariants ---- */

#define ACCEPTED (link[0] == 1 || link[1] == 1)
#ifdef UNMANAGED
#define TO_BE_SEEN (link[0] == 1 || link[1] == 1 && ref[1])         /* the other waits for the next listing */
#else
#define TO_BE_SEEN ACCEPTED
#endif
#if LOSSY == 1
#define LINKED_AT_ALL (link[0] || link[1])
#else
#define LINKED_AT_ALL ACCEPTED
#endif
#ifdef REPEAT
#define NOTHING_AGAIN (!again)
#else
#define NOTHING_AGAIN true
#endif
#define REST (doing[0] == IDLE && doing[1] == IDLE && !late[0] && !late[1] && empty(memory[0]) && empty(memory[1]) && \
    empty(part[0]) && empty(part[1]) && !dead[0] && !dead[1] && !listing[0] && !listing[1] && \
    st != RESTORE && NOTHING_AGAIN)

/* ---- the steps: any that may happen, happens next ---- */

#define STEP(guard, effect) d_step { guard -> effect; x = 0 }

active proctype Baleen() {
    /* Some repository holds the blob, or none does. */
    if
    :: d_step { true -> link[0] = 1; ref[0] = 1; known[0] = 1 }
#ifdef UNMANAGED
    :: d_step { true -> link[1] = 1; ref[1] = 1; known[1] = 1 }
#endif
    :: true
    fi;

    do
#if REACH == 1
    :: STEP(st == PURGE && lease == 1 && hide == HIDES, assert(got_there))
#elif REACH == 2
    :: STEP(restoring && final && lease == 1 && hide == HIDES, assert(got_there))
#endif
    :: STEP(LINKED_AT_ALL && !(BYTES), assert(bytes_lost))
#ifndef BYTES_ONLY
    :: STEP(TO_BE_SEEN && REST && !(VISIBLE), assert(stays_hidden))
#endif

    /* Upload of what is there, mount, manifest PUT: the blob is seen. Upload of what is not there: its bytes are brought. */
    :: STEP(FREE(0, 0) && VISIBLE, begin(0, 0, SEEN))
    :: STEP(FREE(0, 1) && VISIBLE, begin(0, 1, SEEN))
    :: STEP(FREE(1, 0) && VISIBLE, begin(1, 0, SEEN))
    :: STEP(FREE(1, 1) && VISIBLE, begin(1, 1, SEEN))
    :: STEP(FREE(0, 0) && !(VISIBLE), upload(0, 0))
    :: STEP(FREE(0, 1) && !(VISIBLE), upload(0, 1))
    :: STEP(FREE(1, 0) && !(VISIBLE), upload(1, 0))
    :: STEP(FREE(1, 1) && !(VISIBLE), upload(1, 1))
    /* Its link, and then its event. */
    :: STEP(doing[0] == SEEN, link[repo[0]] = 1; doing[0] = LINKED)
    :: STEP(doing[0] == LINKED, memory[0]!PUSHED(repo[0]); end(0))
    :: STEP(doing[0] == UNLINKED, memory[0]!DELETED(repo[0]); end(0))
    :: STEP(doing[1] == SEEN, link[repo[1]] = 1; doing[1] = LINKED)
#ifdef UNMANAGED
    :: STEP(doing[1] == LINKED || doing[1] == UNLINKED, end(1))
#else
    :: STEP(doing[1] == LINKED, memory[1]!PUSHED(repo[1]); end(1))
    :: STEP(doing[1] == UNLINKED, memory[1]!DELETED(repo[1]); end(1))
#endif
#if LOSSY
    :: STEP(doing[0] == LINKED && lossy, lossy = 0; link[repo[0]] = 2; end(0))
    :: STEP(doing[1] == LINKED && lossy, lossy = 0; link[repo[1]] = 2; end(1))
#endif
#if LOSSY == 2
    /* PUT of an index: that its child is linked is checked, the child's own blobs are not. */
    :: STEP(FREE(0, 0) && link[0] == 2, begin(0, 0, ADOPTING))
    :: STEP(FREE(0, 1) && link[1] == 2, begin(0, 1, ADOPTING))
    :: STEP(FREE(1, 0) && link[0] == 2, begin(1, 0, ADOPTING))
    :: STEP(FREE(1, 1) && link[1] == 2, begin(1, 1, ADOPTING))
    :: STEP(doing[0] == ADOPTING && link[repo[0]], link[repo[0]] = 1; doing[0] = LINKED)
    :: STEP(doing[1] == ADOPTING && link[repo[1]], link[repo[1]] = 1; doing[1] = LINKED)
    :: STEP(doing[0] == ADOPTING && !link[repo[0]], end(0))
    :: STEP(doing[1] == ADOPTING && !link[repo[1]], end(1))
#endif
    /* Manifest DELETE. */
    :: STEP(FREE(0, 0) && link[0], unlink(0, 0))
    :: STEP(FREE(0, 1) && link[1], unlink(0, 1))
    :: STEP(FREE(1, 0) && link[0], unlink(1, 0))
    :: STEP(FREE(1, 1) && link[1], unlink(1, 1))
    /* Death, with something to lose. */
    :: STEP(MAY_DIE(0), die(0))
    :: STEP(MAY_DIE(1), die(1))
    :: STEP(late[0], link[late[0] - 1] = 1; late[0] = 0)
    :: STEP(late[1], link[late[1] - 1] = 1; late[1] = 0)
    :: STEP(late[0], late[0] = 0)
    :: STEP(late[1], late[1] = 0)

    /* Prober: a probe that is sent after t_h + R, and so proves all that is to be proved. */
    :: STEP(TH && !probed[0] && ENDED(0), probed[0] = 1; memory[0]!ECHO)
    :: STEP(TH && !probed[1] && ENDED(1) && SENDS(1), probed[1] = 1; memory[1]!ECHO)

    /* Ingest, and the processor. */
    :: STEP(nempty(memory[0]), deliver(0))
    :: STEP(nempty(memory[1]), deliver(1))
    :: STEP(nempty(part[0]), apply(0))
    :: STEP(nempty(part[1]), apply(1))
#ifdef REPEAT
    :: STEP(repeats && part[0]?[eval(PUSHED(0))], repeats = 0; again = 1 + PUSHED(0))
    :: STEP(repeats && part[0]?[eval(DELETED(0))], repeats = 0; again = 1 + DELETED(0))
    :: STEP(repeats && part[1]?[eval(PUSHED(1))], repeats = 0; again = 1 + PUSHED(1))
    :: STEP(repeats && part[1]?[eval(DELETED(1))], repeats = 0; again = 1 + DELETED(1))
    :: STEP(again == 1 + PUSHED(0), again = 0; add(0))
    :: STEP(again == 1 + PUSHED(1), again = 0; add(1))
    :: STEP(again == 1 + DELETED(0), again = 0; remove(0))
    :: STEP(again == 1 + DELETED(1), again = 0; remove(1))
#endif

    /* Reconcile: a listing, and later what follows from it. */
    :: STEP(!listing[0] && (dead[0] == 1 && LANDED(0) || MAY_LIST(0)), list(0))
    :: STEP(!listing[1] && (dead[1] == 1 && LANDED(1) || MAY_LIST(1)), list(1))
    :: STEP(listing[0] == 1, listing[0] = 2; found[0] = found[0] + (link[1] -> 2 : 0))
    :: STEP(listing[1] == 1, listing[1] = 2; found[1] = found[1] + (link[1] -> 2 : 0))
    :: STEP(listing[0] == 2, settle(0))
    :: STEP(listing[1] == 2, settle(1))

    /* Job: decide, look at the links, write the intent, set aside, record, purge. */
    :: STEP(HOLDS(0) && at[0] == TOP && st == NONE && hide < HIDES && VISIBLE && UNREFERENCED, at[0] = DECIDED)
    :: STEP(HOLDS(1) && at[1] == TOP && st == NONE && hide < HIDES && VISIBLE && UNREFERENCED, at[1] = DECIDED)
    :: STEP(HOLDS(0) && at[0] == DECIDED && ABSENT(0), at[0] = LOOKED_0)
    :: STEP(HOLDS(1) && at[1] == DECIDED && ABSENT(0), at[1] = LOOKED_0)
    :: STEP(HOLDS(0) && at[0] == LOOKED_0 && ABSENT(1), at[0] = LOOKED_1)
    :: STEP(HOLDS(1) && at[1] == LOOKED_0 && ABSENT(1), at[1] = LOOKED_1)
    :: STEP(HOLDS(0) && (at[0] == DECIDED && !ABSENT(0) || at[0] == LOOKED_0 && !ABSENT(1)), give_up(0))
    :: STEP(HOLDS(1) && (at[1] == DECIDED && !ABSENT(0) || at[1] == LOOKED_0 && !ABSENT(1)), give_up(1))
    :: STEP(HOLDS(0) && at[0] == LOOKED_1, intend(0))
    :: STEP(HOLDS(1) && at[1] == LOOKED_1, intend(1))
    :: STEP(at[0] == INTENDED, set_aside(0))
    :: STEP(at[1] == INTENDED, set_aside(1))
    :: STEP(at[0] == COPIED, ask(0))
    :: STEP(at[1] == COPIED, ask(1))
    :: STEP(HOLDS(0) && at[0] == ASKED && answered[0] && st == INTENT && SOLE(0), record(0))
    :: STEP(HOLDS(1) && at[1] == ASKED && answered[1] && st == INTENT && SOLE(1), record(1))
    :: STEP(HOLDS(0) && at[0] == ASKED && st != INTENT && (answered[0] && sent[0] == 0 || !armed[0]), disarm(0))
    :: STEP(HOLDS(1) && at[1] == ASKED && st != INTENT && (answered[1] && sent[1] == 0 || !armed[1]), disarm(1))
    :: STEP(HOLDS(0) && at[0] == TOP && MAY_PURGE_NOW, clear_t_h(); st = PURGE; go(0, MAY_PURGE, hide))
    :: STEP(HOLDS(1) && at[1] == TOP && MAY_PURGE_NOW, clear_t_h(); st = PURGE; go(1, MAY_PURGE, hide))
#ifdef SHOWN
    :: STEP(at[0] == MAY_PURGE, look(0))
    :: STEP(at[1] == MAY_PURGE, look(1))
    :: STEP(at[0] == SURE, purge(0))
    :: STEP(at[1] == SURE, purge(1))
    /* Somebody who is not Baleen removes the marker, or puts the bytes back: not between a look and its delete. */
    :: STEP(shows && MAY_SHOW && !SURE_OF_IT, reveal())
#else
    :: STEP(at[0] == MAY_PURGE, purge(0))
    :: STEP(at[1] == MAY_PURGE, purge(1))
#endif
    :: STEP(at[0] == PURGED && HOLDS(0), st = NONE; go(0, TOP, 0))
    :: STEP(at[1] == PURGED && HOLDS(1), st = NONE; go(1, TOP, 0))
    :: STEP(at[0] == PURGED && !HOLDS(0), go(0, TOP, 0))
    :: STEP(at[1] == PURGED && !HOLDS(1), go(1, TOP, 0))

    /* The next job, while the first sleeps or is dead: it undoes or finishes. */
    :: STEP(JOBS > 1 && lease == 0 && (st != NONE || at[0] != TOP), take_over())
    :: STEP(HOLDS(1) && at[1] == TOP && st == INTENT, clear_t_h(); st = RESTORE)
    :: STEP(HOLDS(1) && at[1] == TOP && st == INTENT, armed[1] = 1; go(1, INTENDED, hide))
    :: STEP(HOLDS(1) && at[1] == TOP && st == PURGE, go(1, MAY_PURGE, hide))

    /* Storage: the delete lands, at any time until its bound has passed. */
    :: STEP(armed[0] && sent[0], land(0))
    :: STEP(armed[1] && sent[1], land(1))
    :: STEP(armed[0] && (st == RESTORE || lease != 0), lapse(0))
    :: STEP(armed[1] && st == RESTORE, lapse(1))
#ifdef RETRY
    :: STEP(at[0] == ASKED && armed[0] && sent[0] == 1 && !answered[0], sent[0] = 2)
    :: STEP(at[1] == ASKED && armed[1] && sent[1] == 1 && !answered[1], sent[1] = 2)
    :: STEP(armed[0] && answered[0] && sent[0], lapse(0))
    :: STEP(armed[1] && answered[1] && sent[1], lapse(1))
#endif

    /* Restorer: back at once, as often as needed; final when no delete could land any more before the last time. */
#if WITHOUT == 14
    :: STEP(st == RESTORE && !restoring && !(HARMLESS && VISIBLE), bring_back(); restoring = 1)
    :: STEP(restoring && HARMLESS && MAY_CLOSE, close())
    :: STEP(restoring && !(HARMLESS), restoring = 0)
#else
    :: STEP(st == RESTORE && !restoring && !final && HARMLESS, final = 1)
    :: STEP(st == RESTORE && !restoring && (final || !(VISIBLE)), bring_back(); restoring = 1)
    :: STEP(restoring && final && MAY_CLOSE, close())
    :: STEP(restoring && !final, restoring = 0)
#endif
#ifdef UNVERSIONED
    :: STEP(dropping, copies = copies & ~COPY(dropping); dropping = 0)
#endif
    :: STEP(st == RESTORE && naps, nap())
    :: STEP(noted, wake())
    od
}
