package demo

import (
	"context"
	"fmt"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lanyard-id/lanyard/internal/arm"
	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/estate"
	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/migrate"
	"github.com/lanyard-id/lanyard/internal/migrate/move"
)

// Document 002's way from the one to the other, for a workload that is never
// told: its image and its arguments stay.
const (
	reportsNamespace = "reports"
	reportsCronJob   = "monthly-report"
)

// legacyObjects are a CronJob as Pod Identity v1 serves it. Its runs are made
// by the story: nobody wants to wait for the first of the month.
func legacyObjects(args []string) []client.Object {
	suspended := true
	template := pod(reportsNamespace, "", reportsCronJob, map[string]string{bindingLabel: littlePodLabel}, args...)
	return []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: reportsNamespace}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: reportsCronJob, Namespace: reportsNamespace}},
		&batchv1.CronJob{
			ObjectMeta: metav1.ObjectMeta{Name: reportsCronJob, Namespace: reportsNamespace},
			Spec: batchv1.CronJobSpec{
				Schedule: "0 0 1 * *", Suspend: &suspended,
				JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{
					ObjectMeta: metav1.ObjectMeta{Labels: template.Labels}, Spec: template.Spec,
				}}},
			},
		},
	}
}

// migrated are the scenes of a workload before and after.
func (s *Story) migrated(resource string) []scene {
	run := func(door, name string) scene {
		return scene{
			row: Row{Door: door, Pod: reportsNamespace + "/" + name, Identity: estate.PodIdentity, Resource: resource, Want: secretRead},
			pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: reportsNamespace, Name: name}}, job: reportsCronJob,
		}
	}
	before, after := run(doorIMDS, "before-migration"), run(doorProxy, "after-migration")
	before.tells, before.before = "the CronJob "+reportsCronJob+" is as Pod Identity v1 has it", s.rollBack
	after.tells, after.before = "lanyard migrate apply, and verify with a real token exchange", s.migrate
	return []scene{before, after}
}

// runJob makes a run of a CronJob as it is now, as `kubectl create job --from`
// does, and returns its pod.
func (s *Story) runJob(ctx context.Context, named *corev1.Pod, cronJob string) (*corev1.Pod, error) {
	c := &batchv1.CronJob{}
	if err := s.Objects.Get(ctx, client.ObjectKey{Namespace: named.Namespace, Name: cronJob}, c); err != nil {
		return nil, fmt.Errorf("reading the CronJob %s: %w", cronJob, err)
	}
	job := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: named.Namespace, Name: named.Name, Labels: c.Spec.JobTemplate.Labels, Annotations: map[string]string{"cronjob.kubernetes.io/instantiate": "manual"},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(c, batchv1.SchemeGroupVersion.WithKind("CronJob"))},
		},
		Spec: c.Spec.JobTemplate.Spec,
	}
	if err := s.Objects.Create(ctx, job); err != nil {
		return nil, fmt.Errorf("creating the Job %s: %w", named.Name, err)
	}
	for {
		w, err := s.Objects.Watch(ctx, &corev1.PodList{}, client.InNamespace(named.Namespace), client.MatchingLabels{batchv1.JobNameLabel: named.Name})
		if err != nil {
			return nil, fmt.Errorf("watching the pods of the Job %s: %w", named.Name, err)
		}
		pod, err := firstPod(ctx, w)
		w.Stop()
		if pod != nil || err != nil {
			return pod, err
		}
	}
}

func firstPod(ctx context.Context, w watch.Interface) (*corev1.Pod, error) {
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for a Job's pod: %w", ctx.Err())
		case e, open := <-w.ResultChan():
			if !open {
				return nil, nil
			}
			if pod, ok := e.Object.(*corev1.Pod); ok && e.Type != watch.Deleted {
				return pod, nil
			}
		}
	}
}

// removeJob deletes a run of an earlier play, with its pods.
func (s *Story) removeJob(ctx context.Context, named *corev1.Pod) error {
	return s.remove(ctx, &batchv1.JobList{}, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: named.Namespace, Name: named.Name}})
}

func (s *Story) mover() (*move.Mover, migrate.Options, error) {
	public, err := arm.CloudByName(arm.Public)
	if err != nil {
		return nil, migrate.Options{}, err
	}
	m, err := move.New(s.Config)
	if err != nil {
		return nil, migrate.Options{}, err
	}
	azure := &federated.Client{Credential: s.Azure.Credential, Cloud: public, Options: s.Azure.Options.ClientOptions}
	m.Azure, m.Writer, m.Entra = azure, azure, &entra.Client{HTTP: s.HTTP}
	return m, migrate.Options{Namespace: reportsNamespace, Issuer: s.Issuer, Authority: public.Authority}, nil
}

// migrate does what `lanyard migrate apply` and `lanyard migrate verify` do.
func (s *Story) migrate(ctx context.Context) error {
	m, options, err := s.mover()
	if err != nil {
		return err
	}
	world, err := m.Read(ctx, options)
	if err != nil {
		return err
	}
	plan := migrate.Make(world, options)
	for _, left := range plan.Left {
		return fmt.Errorf("it cannot be migrated: %+v", left)
	}
	if err := m.Apply(ctx, plan); err != nil {
		return err
	}
	verdicts, err := m.Verify(ctx, reportsNamespace, nil)
	if err != nil {
		return err
	}
	for _, v := range verdicts {
		if !v.OK {
			return fmt.Errorf("%s is not what it was: %v", v.Workload, v.Problems)
		}
	}
	return nil
}

// rollBack undoes what an earlier play has migrated.
func (s *Story) rollBack(ctx context.Context) error {
	m, _, err := s.mover()
	if err != nil {
		return err
	}
	records, err := m.Records(ctx, reportsNamespace)
	if err != nil || len(records) == 0 {
		return err
	}
	return m.Rollback(ctx, move.Rollback{Namespace: reportsNamespace})
}
