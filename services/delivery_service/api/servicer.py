"""DeliveryService as the contract has it: each RPC, handed to the part that does it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from campaign.delivery.v1 import (
    alert_pb2,
    before_the_send_pb2,
    commands_pb2,
    domain_pause_pb2,
    erasure_pb2,
    exclusion_pb2,
    explanation_pb2,
    look_ups_pb2,
    occurrence_pb2,
    retry_pb2,
    send_log_feed_pb2,
    suppression_pb2,
    undefined_failure_pb2,
)
from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1.delivery_service_pb2_grpc import (
    DeliveryServiceServicer,
    add_DeliveryServiceServicer_to_server,
)
from delivery_service.api.alerts import AlertCalls
from delivery_service.api.before_the_send import BeforeTheSendCalls
from delivery_service.api.commands import CommandCalls
from delivery_service.api.control import ControlCalls
from delivery_service.api.deliveries import DeliveryCalls
from delivery_service.api.erasures import ErasureCalls
from delivery_service.api.exclusions import ExclusionCalls
from delivery_service.api.explanations import ExplanationCalls
from delivery_service.api.exports import ExportCalls
from delivery_service.api.kpis import KpiCalls
from delivery_service.api.look_ups import LookUpCalls
from delivery_service.api.occurrences import OccurrenceCalls
from delivery_service.api.recipients import RecipientCalls
from delivery_service.api.retries import RetryCalls
from delivery_service.api.send_log_changes import SendLogChangeCalls
from delivery_service.api.send_logs import SendLogCalls
from delivery_service.api.suppressions import SuppressionCalls
from delivery_service.api.undefined_failures import UndefinedFailureCalls
from service_runtime.calls import response_writer


@dataclass(frozen=True, slots=True)
class AfterTheSend:
    """The parts that look things up."""

    changes: SendLogChangeCalls
    exports: ExportCalls
    look_ups: LookUpCalls
    explanations: ExplanationCalls
    undefined_failures: UndefinedFailureCalls


@dataclass(frozen=True, slots=True)
class AudienceCalls:
    """The parts that say who gets a message, and who gets another one."""

    suppressions: SuppressionCalls
    exclusions: ExclusionCalls
    retries: RetryCalls
    erasures: ErasureCalls


# The methods bear the contract's names, and none needs gRPC's context: the interceptor has dealt with the caller.
class Servicer(DeliveryServiceServicer):
    """Composes the parts."""

    def __init__(
        self,
        deliveries: DeliveryCalls,
        recipients: RecipientCalls,
        control: ControlCalls,
        kpis: KpiCalls,
        send_logs: SendLogCalls,
        after: AfterTheSend,
        commands: CommandCalls,
        occurrences: OccurrenceCalls,
        before: BeforeTheSendCalls,
        alerts: AlertCalls,
        audience: AudienceCalls,
    ) -> None:
        self._deliveries = deliveries
        self._recipients = recipients
        self._control = control
        self._kpis = kpis
        self._send_logs = send_logs
        self._after = after
        self._commands = commands
        self._occurrences = occurrences
        self._before = before
        self._alerts = alerts
        self._audience = audience

    async def CreateDelivery(self, request: pb.CreateDeliveryRequest, context: Any) -> pb.CreateDeliveryResponse:
        return await self._deliveries.create(request)

    async def GetDelivery(self, request: pb.GetDeliveryRequest, context: Any) -> pb.GetDeliveryResponse:
        return await self._deliveries.get(request)

    async def ListDeliveries(self, request: pb.ListDeliveriesRequest, context: Any) -> pb.ListDeliveriesResponse:
        return await self._deliveries.list(request)

    async def UpdateDelivery(self, request: pb.UpdateDeliveryRequest, context: Any) -> pb.UpdateDeliveryResponse:
        return await self._deliveries.update(request)

    async def AddRecipients(
        self, request_iterator: AsyncIterator[pb.AddRecipientsRequest], context: Any
    ) -> pb.AddRecipientsResponse:
        return await self._recipients.add(request_iterator)

    async def GetRecipientUpload(
        self, request: pb.GetRecipientUploadRequest, context: Any
    ) -> pb.GetRecipientUploadResponse:
        return await self._recipients.progress(request)

    async def PrepareDelivery(self, request: pb.PrepareDeliveryRequest, context: Any) -> pb.PrepareDeliveryResponse:
        return await self._deliveries.prepare(request)

    async def ConfirmSend(self, request: pb.ConfirmSendRequest, context: Any) -> pb.ConfirmSendResponse:
        return await self._deliveries.confirm_send(request)

    async def PauseDelivery(self, request: pb.PauseDeliveryRequest, context: Any) -> pb.PauseDeliveryResponse:
        return await self._control.pause(request)

    async def ResumeDelivery(self, request: pb.ResumeDeliveryRequest, context: Any) -> pb.ResumeDeliveryResponse:
        return await self._control.resume(request)

    async def PauseDomain(
        self, request: domain_pause_pb2.PauseDomainRequest, context: Any
    ) -> domain_pause_pb2.PauseDomainResponse:
        return await self._control.pause_domain(request)

    async def ResumeDomain(
        self, request: domain_pause_pb2.ResumeDomainRequest, context: Any
    ) -> domain_pause_pb2.ResumeDomainResponse:
        return await self._control.resume_domain(request)

    async def StopDelivery(self, request: pb.StopDeliveryRequest, context: Any) -> pb.StopDeliveryResponse:
        return await self._control.stop(request)

    async def GetKpis(self, request: pb.GetKpisRequest, context: Any) -> pb.GetKpisResponse:
        return await self._kpis.get(request)

    async def WatchKpis(self, request: pb.WatchKpisRequest, context: Any) -> None:  # type: ignore[override]
        # A coroutine that writes, where others are generators: the two layers of generators around each message would
        # cost more than its writing.
        await self._kpis.watch(request, response_writer(context))

    async def ComputeStatistics(
        self, request: pb.ComputeStatisticsRequest, context: Any
    ) -> pb.ComputeStatisticsResponse:
        return await self._kpis.compute_statistics(request)

    async def ListSendLogs(self, request: pb.ListSendLogsRequest, context: Any) -> pb.ListSendLogsResponse:
        return await self._send_logs.list(request)

    async def GetSendLog(self, request: pb.GetSendLogRequest, context: Any) -> pb.GetSendLogResponse:
        return await self._send_logs.get(request)

    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, context: Any) -> pb.ListDeadLettersResponse:
        return await self._send_logs.list_dead_letters(request)

    async def ListUndefinedFailures(
        self, request: undefined_failure_pb2.ListUndefinedFailuresRequest, context: Any
    ) -> undefined_failure_pb2.ListUndefinedFailuresResponse:
        return await self._after.undefined_failures.list(request)

    async def WatchSendLogs(
        self, request: send_log_feed_pb2.WatchSendLogsRequest, context: Any
    ) -> AsyncIterator[send_log_feed_pb2.WatchSendLogsResponse]:
        async with aclosing(self._after.changes.watch(request)) as responses:
            async for response in responses:
                yield response

    async def ExportSendLogs(
        self, request: send_log_feed_pb2.ExportSendLogsRequest, context: Any
    ) -> AsyncIterator[send_log_feed_pb2.ExportSendLogsResponse]:
        async with aclosing(self._after.exports.export(request)) as responses:
            async for response in responses:
                yield response

    async def RenderMessage(
        self, request: look_ups_pb2.RenderMessageRequest, context: Any
    ) -> look_ups_pb2.RenderMessageResponse:
        return await self._after.look_ups.render_message(request)

    async def ListProfileMessages(
        self, request: look_ups_pb2.ListProfileMessagesRequest, context: Any
    ) -> look_ups_pb2.ListProfileMessagesResponse:
        return await self._after.look_ups.list_profile_messages(request)

    async def GetKpiBreakdown(
        self, request: look_ups_pb2.GetKpiBreakdownRequest, context: Any
    ) -> look_ups_pb2.GetKpiBreakdownResponse:
        return await self._after.look_ups.kpi_breakdown(request)

    async def ExplainDelivery(
        self, request: explanation_pb2.ExplainDeliveryRequest, context: Any
    ) -> explanation_pb2.ExplainDeliveryResponse:
        return await self._after.explanations.delivery(request)

    async def ExplainRecipient(
        self, request: explanation_pb2.ExplainRecipientRequest, context: Any
    ) -> explanation_pb2.ExplainRecipientResponse:
        return await self._after.explanations.recipient(request)

    async def ListTrackingEvents(
        self, request: look_ups_pb2.ListTrackingEventsRequest, context: Any
    ) -> look_ups_pb2.ListTrackingEventsResponse:
        return await self._after.look_ups.list_tracking_events(request)

    async def Unconfirm(self, request: commands_pb2.UnconfirmRequest, context: Any) -> commands_pb2.UnconfirmResponse:
        return await self._commands.unconfirm(request)

    async def CancelPreparation(
        self, request: commands_pb2.CancelPreparationRequest, context: Any
    ) -> commands_pb2.CancelPreparationResponse:
        return await self._commands.cancel_preparation(request)

    async def Decline(self, request: commands_pb2.DeclineRequest, context: Any) -> commands_pb2.DeclineResponse:
        return await self._commands.decline(request)

    async def DeleteDelivery(
        self, request: commands_pb2.DeleteDeliveryRequest, context: Any
    ) -> commands_pb2.DeleteDeliveryResponse:
        return await self._commands.delete(request)

    async def DuplicateDelivery(
        self, request: commands_pb2.DuplicateDeliveryRequest, context: Any
    ) -> commands_pb2.DuplicateDeliveryResponse:
        return await self._commands.duplicate(request)

    async def RetryFailed(self, request: retry_pb2.RetryFailedRequest, context: Any) -> retry_pb2.RetryFailedResponse:
        return await self._audience.retries.retry_failed(request)

    async def ListExclusions(
        self, request: exclusion_pb2.ListExclusionsRequest, context: Any
    ) -> exclusion_pb2.ListExclusionsResponse:
        return await self._audience.exclusions.list(request)

    async def CreateSuppressionList(
        self, request: suppression_pb2.CreateSuppressionListRequest, context: Any
    ) -> suppression_pb2.CreateSuppressionListResponse:
        return await self._audience.suppressions.create(request)

    async def GetSuppressionList(
        self, request: suppression_pb2.GetSuppressionListRequest, context: Any
    ) -> suppression_pb2.GetSuppressionListResponse:
        return await self._audience.suppressions.get(request)

    async def ListSuppressionLists(
        self, request: suppression_pb2.ListSuppressionListsRequest, context: Any
    ) -> suppression_pb2.ListSuppressionListsResponse:
        return await self._audience.suppressions.list_lists(request)

    async def DeleteSuppressionList(
        self, request: suppression_pb2.DeleteSuppressionListRequest, context: Any
    ) -> suppression_pb2.DeleteSuppressionListResponse:
        return await self._audience.suppressions.delete(request)

    async def AddSuppressionEntries(
        self, request: suppression_pb2.AddSuppressionEntriesRequest, context: Any
    ) -> suppression_pb2.AddSuppressionEntriesResponse:
        return await self._audience.suppressions.add(request)

    async def RemoveSuppressionEntries(
        self, request: suppression_pb2.RemoveSuppressionEntriesRequest, context: Any
    ) -> suppression_pb2.RemoveSuppressionEntriesResponse:
        return await self._audience.suppressions.remove(request)

    async def ListSuppressionEntries(
        self, request: suppression_pb2.ListSuppressionEntriesRequest, context: Any
    ) -> suppression_pb2.ListSuppressionEntriesResponse:
        return await self._audience.suppressions.list_entries(request)

    async def EraseProfile(
        self, request: erasure_pb2.EraseProfileRequest, context: Any
    ) -> erasure_pb2.EraseProfileResponse:
        return await self._audience.erasures.erase(request)

    async def PreviewOccurrences(
        self, request: occurrence_pb2.PreviewOccurrencesRequest, context: Any
    ) -> occurrence_pb2.PreviewOccurrencesResponse:
        return await self._occurrences.preview(request)

    async def ListOccurrences(
        self, request: occurrence_pb2.ListOccurrencesRequest, context: Any
    ) -> occurrence_pb2.ListOccurrencesResponse:
        return await self._occurrences.list(request)

    async def GetRecurrenceTotals(
        self, request: occurrence_pb2.GetRecurrenceTotalsRequest, context: Any
    ) -> occurrence_pb2.GetRecurrenceTotalsResponse:
        return await self._occurrences.totals(request)

    async def ApproveDelivery(
        self, request: before_the_send_pb2.ApproveDeliveryRequest, context: Any
    ) -> before_the_send_pb2.ApproveDeliveryResponse:
        return await self._before.approve(request)

    async def SendProof(
        self, request: before_the_send_pb2.SendProofRequest, context: Any
    ) -> before_the_send_pb2.SendProofResponse:
        return await self._before.send_proof(request)

    async def ListAlerts(self, request: alert_pb2.ListAlertsRequest, context: Any) -> alert_pb2.ListAlertsResponse:
        return await self._alerts.list(request)

    async def WatchAlerts(
        self, request: alert_pb2.WatchAlertsRequest, context: Any
    ) -> AsyncIterator[alert_pb2.WatchAlertsResponse]:
        async with aclosing(self._alerts.watch(request)) as responses:
            async for response in responses:
                yield response


def add_to_server(servicer: Servicer, server: grpc.aio.Server) -> None:
    """Registers the servicer. WatchKpis gives bytes: one serialisation serves all watchers of a delivery."""
    registration: Any = _BytesFromWatchKpis(server)
    add_DeliveryServiceServicer_to_server(servicer, registration)


class _BytesFromWatchKpis:
    """Stands in for the server while the generated code registers its handlers, and takes one serializer away."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """The generated code registers everything twice; the registered methods below are all that is served."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        watch = handlers["WatchKpis"]
        replaced: Any = grpc.unary_stream_rpc_method_handler(watch.unary_stream, watch.request_deserializer, None)
        changed = {**handlers, "WatchKpis": replaced}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, changed),))
