package doctor

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/lanyard-id/lanyard/internal/webhook/doctor/diagnosis"
)

// At the default failurePolicy an API server that does not reach the webhook
// makes no replacements at all.
func TestEvictionsEndWhenNoReplacementComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		for i := range 40 {
			w.pod(fmt.Sprint("ns", i%10), fmt.Sprint("set", i), fmt.Sprint("pod", i), false)
		}
		c := w.doctor(t, true)
		time.Sleep(5 * time.Minute)
		if n := c.evictions(resultEvicted); n != 1 {
			t.Errorf("%v pods are gone before the first eviction has helped", n)
		}
		time.Sleep(6 * time.Hour)
		if n := c.evictions(resultEvicted); n != maxUnhelped {
			t.Errorf("%v evictions, want the end after %d", n, maxUnhelped)
		}
		if n := c.evictions(resultUnhealed); n != maxUnhelped {
			t.Errorf("%v did not help", n)
		}
		log := c.log.String()
		for _, want := range []string{"no replacement was ready within 10m0s", "evictions do not help: none are made any more", "owner=ReplicaSet/set", "lease=system/azure-wi-webhook-doctor"} {
			if !strings.Contains(log, want) {
				t.Errorf("the log lacks %q", want)
			}
		}
		c.stop()
		next := w.doctor(t, true) // knows it
		time.Sleep(6 * time.Hour)
		if n := next.evictions(resultEvicted); n != 0 {
			t.Errorf("the next leader evicts %v", n)
		}
		w.do(func() { w.lease = nil }) // as the log says
		time.Sleep(5 * time.Minute)
		if n := next.evictions(resultEvicted); n != 1 {
			t.Errorf("%v evictions after the Lease was deleted", n)
		}
		next.stop()
	})
}

// Users may label pods after the webhook, or make them without it.
func TestOneNamespaceDoesNotEndTheEvictionsOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		for i := range 20 {
			w.pod("bad", fmt.Sprint("bad", i), fmt.Sprint("bad", i), false)
		}
		time.Sleep(time.Minute)
		w.pod("good", "good", "good", false)
		w.evict = func(w *world, key string) (*http.Response, error) {
			w.gone(key)
			if key == "good/good" {
				go w.pod("good", "good", "good", true)
			}
			return answer(201, `{}`), nil
		}
		c := w.doctor(t, true)
		time.Sleep(2 * time.Hour)
		if n := c.evictions(resultUnhealed); n != maxUnhelpedHere {
			t.Errorf("%v evictions in the bad namespace did not help, want its end after %d", n, maxUnhelpedHere)
		}
		if n := c.evictions(resultHealed); n != 1 {
			t.Errorf("%v of the good namespace are healed", n)
		}
		if !strings.Contains(c.log.String(), "evictions do not help in this namespace") {
			t.Error("the log does not say so")
		}
		c.stop()
	})
}

// The answer is lost, or the server failed after it had evicted the pod: the
// next pod of the owner must wait all the same.
func TestAnEvictionWithoutAnswerCounts(t *testing.T) {
	for name, lost := range map[string]func() (*http.Response, error){
		"the connection breaks":   func() (*http.Response, error) { return nil, errors.New("connection reset") },
		"the server fails inside": func() (*http.Response, error) { return status(500), nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				for i := range 5 {
					w.pod("shop", "web", fmt.Sprint("pod", i), false)
				}
				n := 0
				w.evict = func(w *world, key string) (*http.Response, error) {
					w.gone(key)
					n++
					go func() {
						time.Sleep(20 * time.Second)
						w.pod("shop", "web", fmt.Sprint("new", n), false) // no better
					}()
					return lost()
				}
				c := w.doctor(t, true)
				time.Sleep(2 * time.Hour)
				w.do(func() {
					if n != 1 {
						t.Errorf("%d pods were evicted, although the first replacement was no better", n)
					}
				})
				if n := c.evictions(resultUnhealed); n != 1 {
					t.Errorf("%v did not help", n)
				}
				c.stop()
			})
		})
	}
}

func TestAnEvictionThatDidNotHappenIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.pod("shop", "web", "pod", false)
		n := 0
		w.evict = func(w *world, key string) (*http.Response, error) {
			if n++; n < 3 {
				return status(500), nil
			}
			w.gone(key)
			go w.pod("shop", "web", "new", true)
			return answer(201, `{}`), nil
		}
		c := w.doctor(t, true)
		time.Sleep(10 * time.Minute)
		if healed, failed := c.evictions(resultHealed), c.evictions(resultFailed); healed != 1 || failed != 2 {
			t.Errorf("%v healed, %v failed", healed, failed)
		}
		c.stop()
	})
}

func TestWithoutRightsTheLogIsNotFilled(t *testing.T) {
	for name, refused := range map[string]string{"to evict": "POST eviction", "to write events": "POST events", "to read service accounts": "GET app", "to list pods": "GET pods"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				for i := range 300 {
					w.pod("shop", fmt.Sprint("set", i), fmt.Sprint("pod", i), false)
				}
				w.refuse = func(r *http.Request) int {
					if strings.HasSuffix(r.Method+" "+r.URL.Path, strings.TrimPrefix(refused, r.Method+" ")) && strings.HasPrefix(refused, r.Method) {
						return 403
					}
					return 0
				}
				c := w.doctor(t, refused != "POST events")
				time.Sleep(3 * time.Hour)
				found := strings.Count(c.log.String(), "a pod lacks its workload identity")
				if n := strings.Count(c.log.String(), "level=WARN") - found; n == 0 || n > 250 {
					t.Errorf("%d warnings in three hours about a right that is missing", n)
				}
				if n := c.evictions(resultEvicted); n != 0 {
					t.Errorf("%v evictions", n)
				}
				if n := w.count(refused[:strings.Index(refused, " ")+1] + refused[strings.LastIndex(refused, " ")+1:]); n == 0 || n > 2000 {
					t.Errorf("%d requests in three hours", n)
				}
				c.stop()
			})
		})
	}
}

func TestNamespacesThatCannotBeReadAreNotJudged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.selector = `{"matchExpressions":[{"key":"control-plane","operator":"DoesNotExist"}]}`
		w.unlabeled = true
		for i := range 100 {
			w.pod(fmt.Sprint("ns", i), fmt.Sprint("set", i), "pod", false)
		}
		c := w.doctor(t, true)
		time.Sleep(time.Hour)
		if n := c.found(diagnosis.NotMutated) + c.evictions(resultEvicted); n != 0 {
			t.Errorf("%v findings and evictions", n)
		}
		if c.looked() == nil {
			t.Error("the metrics say that every pod was looked at")
		}
		if n := strings.Count(c.log.String(), "level=WARN"); n > 20 {
			t.Errorf("%d warnings in an hour", n)
		}
		w.do(func() { w.unlabeled = false })
		time.Sleep(11 * time.Minute)
		if err := c.looked(); err != nil || c.found(diagnosis.NotMutated)+c.evictions(resultEvicted) < 100 {
			t.Errorf("%v, %v findings after the right was given", err, c.found(diagnosis.NotMutated))
		}
		c.stop()
	})
}

func TestStaleIdentitiesAreEvictedWhenAsked(t *testing.T) {
	for name, test := range map[string]struct {
		now   string // client id of the account
		stale bool   // --doctor-evict-stale
		want  float64
	}{
		"another identity, and it is asked":                        {"c2", true, 1},
		"another identity, and it is not asked":                    {"c2", false, 0},
		"the cache is late: the account names the pod's by itself": {"c1", true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.known, w.accounts["shop/app"] = "c2", test.now
				w.pod("shop", "web", "pod", true)
				c := w.open()
				c.Evict, c.EvictStale = true, test.stale
				(&town{t: t}).start(c)
				time.Sleep(time.Minute)
				if n := c.evictions(resultEvicted); n != test.want {
					t.Errorf("%v evictions, want %v", n, test.want)
				}
				c.stop()
			})
		})
	}
}

func TestWatchesThatEnd(t *testing.T) {
	expired := `{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old resource version"}}`
	for name, test := range map[string]struct {
		onWatch       func(out io.Writer)
		lists         int // at most, in an hour
		failing       bool
		watchesAtMost int
	}{
		"after two minutes, as of a load balancer: continued":     {func(io.Writer) { time.Sleep(2 * time.Minute) }, 7, false, 40},
		"at once: not every pod is read again every second":       {func(io.Writer) {}, 70, true, 70},
		"because the version has expired: every pod is read":      {func(out io.Writer) { _, _ = io.WriteString(out, expired) }, 70, true, 70},
		"in the middle of an event, as of a server that restarts": {func(out io.Writer) { _, _ = io.WriteString(out, `{"type":"ADD`) }, 70, true, 70},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.onWatch = test.onWatch
				c := w.doctor(t, false)
				time.Sleep(time.Hour)
				w.do(func() {
					if w.lists > test.lists || w.watches > test.watchesAtMost || w.lists < 6 {
						t.Errorf("%d lists and %d watches in an hour", w.lists, w.watches)
					}
					w.onWatch = nil
				})
				if failing := strings.Contains(c.log.String(), "the doctor cannot look at pods"); failing != test.failing {
					t.Errorf("log:\n%s", c.log)
				}
				time.Sleep(11 * time.Minute)
				w.pod("shop", "web", "late", false)
				time.Sleep(2 * time.Second)
				if n := c.found(diagnosis.NotMutated); n != 1 {
					t.Errorf("%v findings once watches last again", n)
				}
				c.stop()
			})
		})
	}
}

// Whoever has the Lease may be slow: an eviction needs it in this moment.
func TestWithoutTheLeaseNobodyIsEvicted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		c := w.doctor(t, true)
		time.Sleep(time.Minute)
		w.do(func() { // another takes it, and this one has not noticed
			w.lease = []byte(strings.Replace(string(w.lease), c.Identity, "other", 1))
			w.lease = []byte(strings.Replace(string(w.lease), `"resourceVersion":"`, `"resourceVersion":"9`, 1))
		})
		w.pod("shop", "web", "pod", false)
		time.Sleep(10 * time.Second)
		if c.acts() || w.count("POST eviction") != 0 {
			t.Errorf("acts: %v, %d evictions", c.acts(), w.count("POST eviction"))
		}
		time.Sleep(2 * time.Minute) // the other is gone
		if !c.acts() || w.count("POST eviction") != 1 {
			t.Errorf("acts: %v, %d evictions after the other has gone", c.acts(), w.count("POST eviction"))
		}
		c.stop()
		if testutil.ToFloat64(c.Metrics.acting) != 0 {
			t.Error("it still acts")
		}
	})
}
