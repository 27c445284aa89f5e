package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"runtime/debug"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/webhook/mutation"
	"github.com/lanyard-id/lanyard/internal/webhook/rawjson"
)

// The API server accepts objects of 3 MiB; a review holds one, as JSON.
const maxReviewBytes = 8 << 20

// usualReviewBytes is what nearly every review fits in.
const usualReviewBytes = 64 << 10

// ErrNotFound says that there is no such service account.
var ErrNotFound = errors.New("service account not found")

// ServiceAccounts finds service accounts.
type ServiceAccounts interface {
	// ServiceAccount returns at least the labels and annotations of
	// azure.workload.identity/, or an error that wraps ErrNotFound.
	ServiceAccount(ctx context.Context, namespace, name string) (mutation.ServiceAccount, error)
}

// A Handler answers admission reviews (admission.k8s.io/v1). It fails closed:
// a pod that asks for an identity is admitted with it or not at all.
type Handler struct {
	ServiceAccounts ServiceAccounts // must be set
	Config          mutation.Config // must be valid; NativeSidecars is the func's

	NativeSidecars func() bool  // whether the API server knows them; nil means yes
	Metrics        *Metrics     // nil means none
	Logger         *slog.Logger // nil means slog.Default
}

// A requestError is a request that is no admission review.
type requestError struct {
	status int
	text   string
}

func (e *requestError) Error() string { return e.text }

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	started := time.Now()
	status := http.StatusOK
	defer h.Metrics.serving()(&status)
	req, err := decodeReview(w, r)
	if err != nil {
		status = http.StatusBadRequest
		var e *requestError
		if errors.As(err, &e) {
			status = e.status
		}
		h.Metrics.observe(decisionInvalid, time.Since(started))
		h.logger().WarnContext(r.Context(), "request refused", "remote", r.RemoteAddr, "status", status, "err", err)
		http.Error(w, err.Error(), status)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), budget(r))
	defer cancel()
	answer, decision := h.safely(ctx, req)
	h.Metrics.observe(decision, time.Since(started))
	answer.UID = req.UID
	body, err := json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "AdmissionReview"}, Response: answer,
	})
	if err != nil { // the patch is raw JSON of our own making
		status = http.StatusInternalServerError
		h.logger().ErrorContext(ctx, "encoding the answer", "err", err)
		http.Error(w, "encoding the answer failed", status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if _, err := w.Write(body); err != nil {
		h.logger().WarnContext(ctx, "writing the answer", "remote", r.RemoteAddr, "err", err)
	}
}

// reviewShape is what is read of a review.
var reviewShape = rawjson.Shape{
	"apiVersion": nil, "kind": nil,
	"request": {"uid": nil, "namespace": nil, "operation": nil, "resource": nil, "subResource": nil, "object": {}},
}

// decodeReview reads the request out of a review.
func decodeReview(w http.ResponseWriter, r *http.Request) (*admissionv1.AdmissionRequest, error) {
	if r.Method != http.MethodPost {
		return nil, &requestError{http.StatusMethodNotAllowed, "send an AdmissionReview by POST"}
	}
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return nil, &requestError{http.StatusUnsupportedMediaType, "send an AdmissionReview as application/json"}
	}
	body, err := read(http.MaxBytesReader(w, r.Body, maxReviewBytes), r.ContentLength)
	if err != nil {
		var big *http.MaxBytesError
		if errors.As(err, &big) {
			return nil, &requestError{http.StatusRequestEntityTooLarge, fmt.Sprintf("the review is larger than %d bytes", maxReviewBytes)}
		}
		return nil, fmt.Errorf("reading the review: %w", err)
	}
	tree, err := rawjson.Parse(body, reviewShape)
	if err != nil {
		return nil, fmt.Errorf("decoding the review: %w", err)
	}
	review, _ := tree.(map[string]any)
	if v := admissionv1.SchemeGroupVersion.String(); review["apiVersion"] != v || review["kind"] != "AdmissionReview" {
		return nil, fmt.Errorf("the body is %q of %q, not an AdmissionReview of %s: set admissionReviewVersions to [v1]", review["kind"], review["apiVersion"], v)
	}
	request, ok := review["request"].(map[string]any)
	if !ok {
		return nil, errors.New("the review has no request")
	}
	resource, _ := request["resource"].(map[string]any)
	text := func(in map[string]any, member string) string {
		s, _ := in[member].(string)
		return s
	}
	object, _ := request["object"].(json.RawMessage)
	return &admissionv1.AdmissionRequest{
		UID: types.UID(text(request, "uid")), Namespace: text(request, "namespace"), Operation: admissionv1.Operation(text(request, "operation")),
		Resource:    metav1.GroupVersionResource{Group: text(resource, "group"), Version: text(resource, "version"), Resource: text(resource, "resource")},
		SubResource: text(request, "subResource"), Object: runtime.RawExtension{Raw: object},
	}, nil
}

// read reads a body of a size that is known beforehand, mostly. What is only
// announced takes no memory beyond the usual.
func read(r io.Reader, size int64) ([]byte, error) {
	var b bytes.Buffer
	if size > 0 {
		b.Grow(int(min(size, usualReviewBytes)) + bytes.MinRead)
	}
	_, err := b.ReadFrom(r)
	return b.Bytes(), err
}

// budget leaves the API server time to read the answer: its own text, once the
// deadline has passed, does not say why.
func budget(r *http.Request) time.Duration {
	d, err := time.ParseDuration(r.URL.Query().Get("timeout"))
	if err != nil || d <= 0 || d > 30*time.Second {
		d = 10 * time.Second
	}
	return d - d/10
}

// safely turns a panic into a denial: a review that the server drops looks to
// the API server like a webhook that is away.
func (h *Handler) safely(ctx context.Context, req *admissionv1.AdmissionRequest) (answer *admissionv1.AdmissionResponse, done decision) {
	defer func() {
		if p := recover(); p != nil {
			h.Metrics.panicked()
			answer, done = h.refuse(ctx, req, mutation.Pod{}, fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
		}
	}()
	return h.admit(ctx, req)
}

// admit decides on one request.
func (h *Handler) admit(ctx context.Context, req *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, decision) {
	if req.Operation != admissionv1.Create || req.Resource.Group != "" || req.Resource.Resource != "pods" || req.SubResource != "" {
		return &admissionv1.AdmissionResponse{Allowed: true}, decisionUnchanged
	}
	pod, err := mutation.ParsePod(req.Object.Raw)
	if err != nil {
		return h.refuse(ctx, req, pod, &mutation.Denial{Code: http.StatusBadRequest, Message: err.Error()})
	}
	if !pod.Labelled() {
		return &admissionv1.AdmissionResponse{Allowed: true}, decisionUnchanged
	}
	sa, err := h.ServiceAccounts.ServiceAccount(ctx, req.Namespace, pod.ServiceAccount)
	sa.Namespace, sa.Name = req.Namespace, pod.ServiceAccount
	switch {
	case errors.Is(err, ErrNotFound):
		return h.refuse(ctx, req, pod, &mutation.Denial{Code: http.StatusBadRequest, Message: fmt.Sprintf(
			"serviceaccounts %q not found in namespace %q: create it before the pod that uses it", sa.Name, sa.Namespace)})
	case err != nil:
		// The reason goes to the log: it may name addresses of the control plane.
		h.logger().ErrorContext(ctx, "reading the service account", "namespace", sa.Namespace, "serviceAccount", sa.Name, "err", err)
		return h.refuse(ctx, req, pod, &mutation.Denial{Code: http.StatusServiceUnavailable, Message: fmt.Sprintf(
			"service account %s/%s could not be read, so the pod would have no identity; try again", sa.Namespace, sa.Name)})
	}
	config := h.Config
	config.NativeSidecars = h.NativeSidecars == nil || h.NativeSidecars()
	result, err := mutation.Mutate(pod, sa, config)
	if err != nil {
		return h.refuse(ctx, req, pod, err)
	}
	answer := &admissionv1.AdmissionResponse{Allowed: true, Warnings: result.Warnings}
	done := decisionUnchanged
	if len(result.Patch) > 0 {
		patch, err := json.Marshal(result.Patch)
		if err != nil {
			return h.refuse(ctx, req, pod, fmt.Errorf("encoding the patch: %w", err))
		}
		kind := admissionv1.PatchTypeJSONPatch
		answer.Patch, answer.PatchType, done = patch, &kind, decisionMutated
	}
	h.logger().InfoContext(ctx, "pod admitted", "namespace", req.Namespace, "pod", pod.Display(), "serviceAccount", sa.Name,
		"clientID", sa.Annotations[workloadidentity.AnnotationClientID], "operations", len(result.Patch), "warnings", len(result.Warnings))
	return answer, done
}

// refuse turns an error into a denial and logs it.
func (h *Handler) refuse(ctx context.Context, req *admissionv1.AdmissionRequest, pod mutation.Pod, err error) (*admissionv1.AdmissionResponse, decision) {
	var denied *mutation.Denial
	if !errors.As(err, &denied) {
		h.logger().ErrorContext(ctx, "mutating the pod", "namespace", req.Namespace, "pod", pod.Display(), "err", err)
		denied = &mutation.Denial{Code: http.StatusInternalServerError, Message: "the workload identity webhook failed; its log says why"}
	}
	h.logger().WarnContext(ctx, "pod denied", "namespace", req.Namespace, "pod", pod.Display(), "serviceAccount", pod.ServiceAccount, "status", denied.Code, "err", denied.Message)
	done := decisionDenied
	if denied.Code >= 500 {
		done = decisionFailed
	}
	h.Metrics.refused(req.Namespace, done)
	return &admissionv1.AdmissionResponse{Result: &metav1.Status{
		Status:  metav1.StatusFailure,
		Code:    int32(denied.Code), //nolint:gosec // an HTTP status
		Reason:  reason(denied.Code),
		Message: denied.Message,
	}}, done
}

func reason(code int) metav1.StatusReason {
	switch code {
	case http.StatusBadRequest:
		return metav1.StatusReasonBadRequest
	case http.StatusServiceUnavailable:
		return metav1.StatusReasonServiceUnavailable
	}
	return metav1.StatusReasonInternalError
}

func (h *Handler) logger() *slog.Logger {
	if h.Logger == nil {
		return slog.Default()
	}
	return h.Logger
}
