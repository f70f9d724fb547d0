"""An MTA side that accepts whatever is relayed to it, as fast as grpc.aio can. No options; reports its port."""

import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from campaign.mta.v1 import relay_service_pb2 as pb
from campaign.mta.v1.relay_service_pb2_grpc import RelayServiceServicer, add_RelayServiceServicer_to_server
from tests.bench.workload import Bench, Report, main


class Accepting(RelayServiceServicer):
    """Says yes."""

    async def Relay(  # the contract's name
        self, request_iterator: AsyncIterator[pb.RelayRequest], context: Any
    ) -> AsyncIterator[pb.RelayResponse]:
        async for request in request_iterator:
            if request.HasField("batch"):
                size = len(request.batch.messages)
                yield pb.RelayResponse(
                    sequence=request.batch.sequence,
                    verdicts=[pb.RELAY_VERDICT_ACCEPTED] * size,
                    answer_times_us=[time.time_ns() // 1_000] * size,
                )

    async def Withdraw(self, request: pb.WithdrawRequest, context: Any) -> pb.WithdrawResponse:
        raise NotImplementedError("nothing is withdrawn in a bench")


async def work(bench: Bench, options: Report) -> None:
    server = grpc.aio.server()
    add_RelayServiceServicer_to_server(Accepting(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    bench.report(port=port)
    await bench.word()
    await server.stop(0)


if __name__ == "__main__":
    main(work)
